"""Errors cross the channel as what they are."""

import pytest

from cluster.errors import (
    BadRequestError,
    FieldProblem,
    InternalError,
    NotFoundError,
    ServiceUnavailableError,
    ServingError,
    TooManyRequestsError,
    ValidationError,
)
from deployments import channel_wire as wire
from deployments.channel_errors import to_failed, to_serving_error


def across(error: ServingError) -> ServingError:
    frame = wire.encode_frame(to_failed(1, error))
    failed = wire.decode_server_message(frame[4:])
    assert isinstance(failed, wire.Failed)
    return to_serving_error(failed)


@pytest.mark.parametrize(
    "error",
    [
        BadRequestError("too long", param="messages", openai_code="context_length_exceeded"),
        ServiceUnavailableError("full", retry_after_s=1.5),
        TooManyRequestsError("slow down", retry_after_s=2.0),
        InternalError("ours"),
        ValidationError([FieldProblem(loc=("messages", 0, "role"), message="no such role")]),
    ],
)
def test_an_error_arrives_as_the_class_it_was_with_all_it_said(error: ServingError) -> None:
    arrived = across(error)
    assert type(arrived) is type(error)
    assert arrived.body() == error.body()
    assert arrived.retry_after_s == error.retry_after_s


def test_an_error_that_the_engine_has_no_business_raising_arrives_as_internal() -> None:
    assert type(across(NotFoundError("what?"))) is InternalError
