"""From a decoded JSON body to a typed request, or to a 422 that names every wrong field."""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Self, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict
from pydantic_core import ErrorDetails

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.values import shown

MAX_REPORTED_PROBLEMS = 16


class Fields(BaseModel):
    """Base of request objects: strict types, unknown fields refused."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, protected_namespaces=(), regex_engine="rust-regex"
    )


class Checkable(Protocol):
    """A request type: what pydantic checks field by field, and what fields mean together."""

    @classmethod
    def model_validate(cls, obj: Any) -> Self: ...
    def problems(self) -> list[FieldProblem]:
        """What is wrong between fields that are each right by themselves."""
        ...


RequestT = TypeVar("RequestT", bound=Checkable)


def parse_request(request_type: type[RequestT], body: object) -> RequestT:
    """Check a decoded body.

    Raises:
        ValidationError: with one problem per wrong field (at most 16).
    """
    if not isinstance(body, dict):
        raise ValidationError(
            [FieldProblem(loc=(), message="the body must be a JSON object", kind="object_type")]
        )
    try:
        request = request_type.model_validate(body)
    except pydantic.ValidationError as error:
        errors = error.errors(include_url=False)[:MAX_REPORTED_PROBLEMS]
        raise ValidationError([_problem(item) for item in errors]) from None
    problems = request.problems()
    if problems:
        raise ValidationError(problems)
    return request


def _problem(error: ErrorDetails) -> FieldProblem:
    kind, context = error["type"], error.get("ctx") or {}
    describe = _MESSAGES.get(kind)
    # Our own checks (`values.refusal`) bring a finished message, some under pydantic's kinds.
    if describe is None or "problem" in context:
        message = error["msg"]
    else:
        message = describe(error["input"], context)
    return FieldProblem(loc=_field_path(error), message=message, kind=kind)


def _field_path(error: ErrorDetails) -> tuple[str | int, ...]:
    """The path in the body. Our unions are tagged `<like this>`; the tags are not part of it."""
    *parents, last = error["loc"] or ("",)
    path: list[str | int] = [part for part in parents if not _is_tag(part)]
    if error["type"] == "extra_forbidden" or not _is_tag(last):
        path.append(last)
    if error["type"] in ("message_role", "turn_role"):
        path.append("role")
    if error["type"] in ("part_type", "tool_type", "format_type", "item_type", "block_type"):
        path.append("type")
    return tuple(path)


def _is_tag(part: str | int) -> bool:
    return isinstance(part, str) and part.startswith("<") and part.endswith(">")


def _wants(allowed: str) -> Callable[[object, Mapping[str, Any]], str]:
    return lambda given, _: f"must be {allowed}; given {shown(given)}"


_MESSAGES: dict[str, Callable[[object, Mapping[str, Any]], str]] = {
    "missing": lambda _given, _ctx: "is required",
    "extra_forbidden": lambda _given, _ctx: "is not a field that this endpoint knows",
    "string_type": _wants("a string"),
    "bool_type": _wants("true or false"),
    "list_type": _wants("an array"),
    "dict_type": _wants("an object"),
    "model_type": _wants("an object"),
    "model_attributes_type": _wants("an object"),
    "none_required": lambda given, _: f"is not supported here; given {shown(given)}",
    "literal_error": lambda given, ctx: f"must be {ctx['expected']}; given {shown(given)}",
    "too_short": lambda _given, ctx: (
        f"must have at least {ctx['min_length']} items; given {ctx['actual_length']}"
    ),
    "too_long": lambda _given, ctx: (
        f"must have at most {ctx['max_length']} items; given {ctx['actual_length']}"
    ),
    "string_too_short": lambda given, ctx: (
        f"must have at least {ctx['min_length']} characters; given {shown(given)}"
    ),
    "string_too_long": lambda given, ctx: (
        f"must have at most {ctx['max_length']} characters; given {shown(given)}"
    ),
    "string_pattern_mismatch": lambda given, ctx: (
        f"must match {ctx['pattern']}; given {shown(given)}"
    ),
    "message_role": lambda given, _: (
        "must be 'system', 'developer', 'user', 'assistant' or 'tool'; given "
        + shown(given.get("role") if isinstance(given, dict) else given)
    ),
}
