"""`/v2/integration_secrets` (api.md 9): the request, the answers, and errors that quote nothing.

A message about such a request never shows what was sent: the value of a secret may stand in any
field by mistake.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, Self

import pydantic
from pydantic import BaseModel, Field

from cluster.errors import BadRequestError, FieldProblem, ServingError, ValidationError
from cluster.integration_secrets import (
    BasicValue,
    BearerValue,
    SecretRecord,
    SecretType,
    SecretValue,
)
from cluster.openai_schema.error_bodies import OpenAIError, TelnyxError
from cluster.openai_schema.validation import MAX_REPORTED_PROBLEMS, Fields
from cluster.telnyx_schema.tasks import PageMeta, iso_time

MAX_IDENTIFIER_CHARS = 255
MAX_VALUE_CHARS = 8192
#: A token becomes part of a header: visible ASCII, no blanks or line ends.
TOKEN_PATTERN = r"^[\x21-\x7e]+$"
IDENTIFIER_PATTERN = r"^[^\x00-\x1f\x7f]+$"
USERNAME_PATTERN = r"^[^\x00-\x1f\x7f:]+$"  # RFC 7617: a colon ends it
PASSWORD_PATTERN = r"^[^\x00-\x1f\x7f]+$"

Identifier = Annotated[str, Field(max_length=MAX_IDENTIFIER_CHARS, pattern=IDENTIFIER_PATTERN)]
Token = Annotated[str, Field(max_length=MAX_VALUE_CHARS, pattern=TOKEN_PATTERN)]
Username = Annotated[str, Field(max_length=MAX_VALUE_CHARS, pattern=USERNAME_PATTERN)]
Password = Annotated[str, Field(max_length=MAX_VALUE_CHARS, pattern=PASSWORD_PATTERN)]

_MISSING = ("10004", "Missing required parameter")
_WRONG_TYPE = ("10026", "Invalid parameter type")
_NOT_IN_ENUM = ("10032", "Value not in the list of allowed values")
_OUT_OF_RANGE = ("10033", "Value outside of the allowed range")
_UNPROCESSABLE = ("10027", "Unprocessable entity")

_WORDS: dict[str, tuple[tuple[str, str], str]] = {
    "missing": (_MISSING, "is required"),
    "extra_forbidden": (_UNPROCESSABLE, "is not a field that this endpoint knows"),
    "string_type": (_WRONG_TYPE, "must be a string"),
    "object_type": (_WRONG_TYPE, "must be a JSON object"),
    "literal_error": (_NOT_IN_ENUM, "must be 'bearer' or 'basic'"),
    "string_too_long": (_OUT_OF_RANGE, "has too many characters"),
    "string_pattern_mismatch": (
        _OUT_OF_RANGE,
        "must not be empty, and has a character that is not allowed",
    ),
}
_KNOWN = ("identifier", "type", "token", "username", "password")


class IntegrationSecretRequest(Fields):
    """`POST /integration_secrets`. What the other type needs is ignored."""

    identifier: Identifier
    type: Literal["bearer", "basic"]
    token: Token | None = None
    username: Username | None = None
    password: Password | None = None

    def __repr_args__(self) -> list[tuple[str | None, object]]:
        """No values: also not where somebody logs the request."""
        return [("type", self.type)]

    @classmethod
    def parsed(cls, body: object) -> Self:
        """
        Raises:
            SecretFieldsError: fields are missing or wrong.
        """
        if not isinstance(body, dict):
            raise SecretFieldsError([FieldProblem(loc=(), message="", kind="object_type")])
        kind = body.get("type")
        ignored = _IGNORED.get(kind, ()) if isinstance(kind, str) else ()
        try:
            request = cls.model_validate({k: v for k, v in body.items() if k not in ignored})
        except pydantic.ValidationError as error:
            # `include_input`: else the exception would carry what was sent.
            items = error.errors(include_url=False, include_input=False, include_context=False)
            raise SecretFieldsError(
                [
                    FieldProblem(loc=_place(item["loc"]), message="", kind=item["type"])
                    for item in items[:MAX_REPORTED_PROBLEMS]
                ]
            ) from None
        missing = [name for name in _NEEDED[request.type] if getattr(request, name) is None]
        if missing:
            raise SecretFieldsError(
                [FieldProblem(loc=(name,), message="", kind="missing") for name in missing]
            )
        return request

    @property
    def value(self) -> SecretValue:
        if self.type == "bearer":
            assert self.token is not None, "parsed() has looked"
            return BearerValue(self.token)
        assert self.username is not None, "parsed() has looked"
        assert self.password is not None, "parsed() has looked"
        return BasicValue(self.username, self.password)


_NEEDED = {"bearer": ("token",), "basic": ("username", "password")}
_IGNORED = {"bearer": ("username", "password"), "basic": ("token",)}


class IntegrationSecretObject(BaseModel):
    """A secret without its value; there is no field for that."""

    record_type: Literal["integration_secret"] = "integration_secret"
    id: str
    identifier: str
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, record: SecretRecord) -> Self:
        created_at = iso_time(record.created_at)
        return cls(
            id=record.secret_id,
            identifier=record.identifier,
            created_at=created_at,
            updated_at=created_at,
        )


class IntegrationSecretAnswer(BaseModel):
    data: IntegrationSecretObject


class IntegrationSecretListAnswer(BaseModel):
    data: list[IntegrationSecretObject]
    meta: PageMeta


SECRET_TYPES: dict[str, tuple[SecretType, ...]] = {
    item.value: (item,) for item in (SecretType.BEARER, SecretType.BASIC)
}


class SecretErrorSource(BaseModel):
    pointer: str


class SecretParameterSource(BaseModel):
    parameter: str


class SecretFieldError(TelnyxError):
    source: SecretErrorSource | SecretParameterSource


class SecretErrorsBody(BaseModel):
    """400 and 422 of these endpoints: `errors`, never `detail`."""

    errors: list[SecretFieldError | TelnyxError]
    error: OpenAIError


class SecretFieldsError(ServingError):
    """422 in Telnyx' shape: one item per field."""

    status, code, title = 422, "10027", "Unprocessable entity"
    openai_type = "invalid_request_error"

    def __init__(self, problems: Sequence[FieldProblem]) -> None:
        assert problems, "a validation error names at least one problem"
        self._problems = tuple(problems)
        self._items = [_error_item(problem) for problem in problems]
        first = problems[0]
        super().__init__(
            "; ".join(str(item["detail"]) for item in self._items),
            param=".".join(map(str, first.loc)) or None,
            openai_code=first.kind,
        )

    def __reduce__(self) -> tuple[type["SecretFieldsError"], tuple[tuple[FieldProblem, ...]]]:
        """Errors travel between processes."""
        return type(self), (self._problems,)

    @classmethod
    def of(cls, error: ValidationError) -> Self:
        """Of what is wrong with a body before its fields are looked at, without its words."""
        return cls(
            [
                FieldProblem(loc=_place(problem.loc), message="", kind=problem.kind)
                for problem in error.problems
            ]
        )

    def body(self) -> dict[str, object]:
        return {"errors": self._items, "error": self.openai_error()}


class SecretQueryError(BadRequestError):
    """400 in Telnyx' shape, naming the parameter of the query."""

    @classmethod
    def of(cls, error: ValidationError) -> Self:
        problem = error.problems[0]
        name = str(problem.loc[0])
        return cls(f"{name}: {problem.message}", param=name)

    def body(self) -> dict[str, object]:
        item: dict[str, object] = {"code": self.code, "title": self.title, "detail": self.detail}
        return {
            "errors": [{**item, "source": {"parameter": self.param}}],
            "error": self.openai_error(),
        }


def _place(loc: Sequence[str | int]) -> tuple[str | int, ...]:
    """The field, if it is one of ours: the name of another may be a secret in the wrong place."""
    return tuple(loc[:1]) if loc and loc[0] in _KNOWN else ()


def _error_item(problem: FieldProblem) -> dict[str, object]:
    (code, title), words = _WORDS.get(problem.kind, (_UNPROCESSABLE, "is not valid"))
    name = ".".join(map(str, problem.loc))
    if not name:
        name = "a field" if problem.kind != "object_type" else "the body"
    item: dict[str, object] = {"code": code, "title": title, "detail": f"{name} {words}"}
    if problem.loc:
        item["source"] = {"pointer": "/" + "/".join(map(str, problem.loc))}
    return item
