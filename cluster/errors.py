"""Errors that a client may see, and the bodies they become on the wire.

Raise a `ServingError` subclass anywhere; the ingress translates it, in one place, into the shape
of its layer: `detail` for validation (422), `errors` for everything else, each beside OpenAI's
`error`.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldProblem:
    """One thing wrong with a request: where, what, and a machine-readable kind."""

    loc: tuple[str | int, ...]
    message: str
    kind: str = "value_error"
    place: str = "body"  # or "query", "header": what `loc` is a path in


class ServingError(Exception):
    """Base of all client-visible errors: an HTTP status, a code, a title and a sentence."""

    status: int = 500
    code: str = "10007"
    title: str = "Unexpected error"
    openai_type: str = "server_error"

    def __init__(
        self,
        detail: str,
        *,
        param: str | None = None,
        openai_code: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.param = param
        self.openai_code = openai_code
        self.retry_after_s = retry_after_s

    def body(self) -> dict[str, object]:
        """The JSON body: `errors` for Telnyx clients, `error` for OpenAI clients."""
        item: dict[str, object] = {"code": self.code, "title": self.title, "detail": self.detail}
        if self.param is not None:
            item["source"] = {"pointer": "/" + self.param.replace(".", "/")}
        return {"errors": [item], "error": self.openai_error()}

    def openai_error(self) -> dict[str, object]:
        """OpenAI's error object, also sent as an event when a stream fails midway."""
        return {
            "message": self.detail,
            "type": self.openai_type,
            "param": self.param,
            "code": self.openai_code,
        }


class BadRequestError(ServingError):
    """Well-formed, but refused."""

    status, code, title = 400, "10015", "Bad Request"
    openai_type = "invalid_request_error"


class InvalidJSONError(BadRequestError):
    code, title = "10023", "Invalid JSON"


class AuthenticationError(ServingError):
    status, code, title = 401, "10009", "Authentication failed"
    openai_type = "authentication_error"


class PermissionDeniedError(ServingError):
    status, code, title = 403, "10010", "Authorization failed"
    openai_type = "permission_error"


class NotFoundError(ServingError):
    status, code, title = 404, "10005", "Resource not found"
    openai_type = "invalid_request_error"


class MethodNotAllowedError(ServingError):
    status, code, title = 405, "10030", "Method not allowed"
    openai_type = "invalid_request_error"


class BodyTooLargeError(ServingError):
    status, code, title = 413, "10015", "Payload too large"
    openai_type = "invalid_request_error"


class UnsupportedMediaTypeError(ServingError):
    status, code, title = 415, "10029", "Expected JSON Content-Type"
    openai_type = "invalid_request_error"


class ValidationError(ServingError):
    """422 with FastAPI's `detail` list; one item per problem."""

    status, code, title = 422, "10027", "Unprocessable entity"
    openai_type = "invalid_request_error"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        assert problems, "a validation error names at least one problem"
        first = problems[0]
        param = ".".join(str(part) for part in first.loc)
        super().__init__(
            "; ".join(f"{'.'.join(map(str, p.loc))}: {p.message}" for p in problems),
            param=param or None,
            openai_code=first.kind,
        )
        self.problems = tuple(problems)

    def __reduce__(self) -> tuple[type["ValidationError"], tuple[tuple[FieldProblem, ...]]]:
        """Errors travel between processes; this one is made from its problems, not its text."""
        return type(self), (self.problems,)

    @classmethod
    def of(cls, field: str, message: str, *, kind: str = "value_error") -> "ValidationError":
        """A single problem; `field` is dotted: `messages.0.role`."""
        loc = tuple(int(p) if p.isdigit() else p for p in field.split("."))
        return cls([FieldProblem(loc=loc, message=message, kind=kind)])

    def body(self) -> dict[str, object]:
        detail = [
            {"loc": [p.place, *p.loc], "msg": p.message, "type": p.kind} for p in self.problems
        ]
        return {"detail": detail, "error": self.openai_error()}


class TooManyRequestsError(ServingError):
    status, code, title = 429, "10011", "Too many requests"
    openai_type = "rate_limit_error"


class ServiceUnavailableError(ServingError):
    """The pool cannot answer now: no replica, a full queue, a replica that died."""

    status, code, title = 503, "10037", "Service unavailable"
    openai_type = "server_error"


class EngineGoneError(ServiceUnavailableError):
    """The replica's engine has failed or stopped: another replica can take the request over."""


class PoolReplacedError(ServiceUnavailableError):
    """The model's replicas are being replaced by those of another checkpoint; of the answer nothing
    has come. Whoever serves the new ones can answer."""


class DeadlineExceededError(ServingError):
    """The time that the client allowed for its answer is over."""

    status, code, title = 408, "10008", "Request timeout"
    openai_type = "invalid_request_error"


class ClientTooSlowError(ServingError):
    """The client does not read its stream; more tokens wait for it than are kept."""

    status, code, title = 408, "10008", "Request timeout"
    openai_type = "invalid_request_error"


class InternalError(ServingError):
    """A defect of ours; the detail says no more than the client needs."""
