"""Errors that a client may see, on their way between processes."""

import pickle

import pytest

from cluster.errors import FieldProblem, ServingError, ValidationError
from cluster.telnyx_schema.integration_secrets import SecretFieldsError
from cluster.tenants.limiter import LimitReachedError, RateState
from cluster.tenants.limits import TenantLimits


def all_below(error_type: type[ServingError]) -> list[type[ServingError]]:
    below = [found for child in error_type.__subclasses__() for found in all_below(child)]
    return [error_type, *below]


def an_error(error_type: type[ServingError]) -> ServingError:
    if issubclass(error_type, LimitReachedError):
        return error_type(
            "too much", state=RateState(TenantLimits(), 1, 2, 3.0, 4.0), retry_after_s=1.5
        )
    if issubclass(error_type, ValidationError | SecretFieldsError):
        return error_type(
            [
                FieldProblem(loc=("tools", 0, "type"), message="no such type", kind="enum"),
                FieldProblem(loc=("seed",), message="must be a whole number"),
            ]
        )
    return error_type("what is wrong", param="seed", openai_code="odd", retry_after_s=1.5)


@pytest.mark.parametrize("error_type", all_below(ServingError))
def test_an_error_arrives_in_another_process_with_all_it_said(
    error_type: type[ServingError],
) -> None:
    error = an_error(error_type)
    arrived = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert type(arrived) is error_type
    assert str(arrived) == str(error)
    assert arrived.body() == error.body()
    assert (arrived.status, arrived.retry_after_s) == (error.status, error.retry_after_s)
    assert (arrived.param, arrived.openai_code) == (error.param, error.openai_code)
