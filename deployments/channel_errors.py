"""Errors on the token channel: a `ServingError` becomes a `Failed` frame and the same class again.

Only the classes listed here cross; anything else arrives as an `InternalError`.
"""

from cluster.errors import (
    BadRequestError,
    FieldProblem,
    InternalError,
    ServiceUnavailableError,
    ServingError,
    TooManyRequestsError,
    ValidationError,
)
from deployments.channel_wire import Failed, WireProblem

_ERROR_TYPES: dict[str, type[ServingError]] = {
    error_type.__name__: error_type
    for error_type in (
        BadRequestError,
        InternalError,
        ServiceUnavailableError,
        TooManyRequestsError,
    )
}


def to_failed(stream_id: int, error: ServingError) -> Failed:
    """The error as a frame."""
    problems: list[WireProblem] = []
    if isinstance(error, ValidationError):
        problems = [WireProblem(list(p.loc), p.message, p.kind) for p in error.problems]
    return Failed(
        stream_id,
        type(error).__name__,
        error.detail,
        error.param,
        error.openai_code,
        error.retry_after_s,
        problems,
    )


def to_serving_error(failed: Failed) -> ServingError:
    """The frame as the error it was."""
    if failed.error_type == ValidationError.__name__ and failed.problems:
        return ValidationError(
            [
                FieldProblem(loc=tuple(problem.loc), message=problem.message, kind=problem.kind)
                for problem in failed.problems
            ]
        )
    error_type = _ERROR_TYPES.get(failed.error_type, InternalError)
    return error_type(
        failed.detail,
        param=failed.param,
        openai_code=failed.openai_code,
        retry_after_s=failed.retry_after_s,
    )
