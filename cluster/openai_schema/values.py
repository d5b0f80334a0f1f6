"""The JSON values that request fields are made of, checked as JSON means them.

A boolean is not a number, "1" is not 1, but 2.0 is the integer 2 (JSON has one number type). Every
message says what is allowed and what was given.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import orjson
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

INT64_MAX = 2**63 - 1
_SHOWN_CHARS = 60
_ENVELOPE_LEVELS = 16  # more than any answer puts around a value that it gives back


def shown(value: object) -> str:
    """A value from a request as a message quotes it: JSON, cut to a readable length."""
    if isinstance(value, str):
        value = value[: _SHOWN_CHARS + 1]  # never encode a megabyte to show its beginning
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 1] + "…"


def refusal(allowed: str, given: object, *, kind: str = "value_error") -> PydanticCustomError:
    """The error for a value that does not fit; `allowed` reads after the field's name."""
    # The message is a template for pydantic: braces in it would be taken as placeholders.
    return PydanticCustomError(
        kind,
        "{problem}",
        {"problem": f"{allowed}; given {shown(given)}"},
    )


@dataclass(frozen=True, slots=True)
class Checked:
    """Annotates a field with its check and with the JSON Schema that says the same."""

    check: Callable[[object], object]
    json_schema: dict[str, object] = field(hash=False)

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, object]:
        return dict(self.json_schema)


def _json_object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise refusal("must be an object", value, kind="dict_type")
    enveloped: object = value
    for _ in range(_ENVELOPE_LEVELS):
        enveloped = [enveloped]
    try:
        orjson.dumps(enveloped)
    except orjson.JSONEncodeError:  # the only reason left: a few hundred levels
        raise refusal("must be nested less deeply", value) from None
    return value


def real(*, low: float, high: float, is_low_open: bool = False) -> Checked:
    """A finite number in [low, high], or in (low, high]."""
    allowed = f"must be a number in {'(' if is_low_open else '['}{low:g}, {high:g}]"

    def check(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise refusal(allowed, value, kind="number_type")
        # NaN compares false with everything and so fails here too.
        if not (low < value or (value == low and not is_low_open)) or value > high:
            raise refusal(allowed, value, kind="out_of_range")
        return float(value)

    lower = "exclusiveMinimum" if is_low_open else "minimum"
    return Checked(check, {"type": "number", lower: low, "maximum": high})


def integer(*, low: int, high: int = INT64_MAX) -> Checked:
    """A whole number in [low, high]; 2.0 counts as 2."""
    is_bounded = high < INT64_MAX
    allowed = f"must be an integer in [{low}, {high}]" if is_bounded else "must be an integer"
    if not is_bounded and low > -INT64_MAX:
        allowed += f" of at least {low}"

    def check(value: object) -> int:
        if isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise refusal(allowed, value, kind="integer_type")
        if not low <= value <= high:
            raise refusal(allowed, value, kind="out_of_range")
        return value

    return Checked(check, {"type": "integer", "minimum": low, "maximum": high})


#: An object of the client's own that can be written as JSON again, also inside an answer.
JSONObject = Annotated[dict[str, Any], Checked(_json_object, {"type": "object"})]
