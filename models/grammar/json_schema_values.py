"""JSON Schema's small words: numbers the back end can hold exactly, formats, equal values.

Knows nothing of the shape of a schema; `models.grammar.json_schema_check` walks that.
"""

import math
from collections.abc import Sequence
from decimal import ROUND_CEILING, ROUND_FLOOR, Decimal

from models.grammar.errors import GrammarError

# The back end computes with float64 and int64; integers up to here are exact in both.
_MAX_EXACT_INTEGER = 2**53
# The largest float64 below 2**63.
_MAX_BOUND = 2**63 - 1024
#: The smallest number above 0 that can be enforced.
MIN_MAGNITUDE = 1e-9

# The back end reads a fraction exactly up to 15 digits, and may be one unit off beyond.
_MAX_EXACT_DIGITS = 15
_BOUND_DIGITS = 13

_YEAR = r"(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = (
    r"(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])"
    r"|(?:0[48]|[2468][048]|[13579][26])00)"
)
_DATE = (
    rf"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    r"|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    rf"|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)

#: Formats that have a pattern of ours: days that exist, no leap seconds, "T" and "Z" written
#: large, so that every value passes RFC 3339 as well as Python's own parsers.
FORMAT_PATTERNS = {"date": _DATE, "time": _TIME, "date-time": f"{_DATE}T{_TIME}"}
#: Formats that the back end enforces.
BACK_END_FORMATS = frozenset({"duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid"})
#: Formats that JSON Schema defines and nothing here enforces.
REFUSED_FORMATS = frozenset(
    {
        "idn-email",
        "idn-hostname",
        "iri",
        "iri-reference",
        "json-pointer",
        "regex",
        "relative-json-pointer",
        "uri-reference",
        "uri-template",
    }
)


def exact_number(value: int | float, place: str) -> int | float:
    """`value`, when the back end would write just this number.

    Raises:
        GrammarError: it would be rounded.
    """
    if isinstance(value, int):
        if abs(value) <= _MAX_EXACT_INTEGER or (abs(value) <= _MAX_BOUND and float(value) == value):
            return value
        raise GrammarError(f"{place}: the integer {str(value)[:40]} is too large to be exact")
    _require_finite(value, place)
    if value != 0 and not MIN_MAGNITUDE <= abs(value) <= _MAX_EXACT_INTEGER:
        raise GrammarError(
            f"{place}: {value!r} is outside of the numbers that can be enforced "
            f"({MIN_MAGNITUDE} to 2**53 in magnitude)"
        )
    if len(Decimal(repr(value)).as_tuple().digits) > _MAX_EXACT_DIGITS:
        raise GrammarError(f"{place}: {value!r} has more than {_MAX_EXACT_DIGITS} digits")
    return value


def inward_bound(value: int | float, place: str, *, is_lower: bool) -> int | float:
    """The nearest enforceable bound that admits nothing `value` would not.

    Raises:
        GrammarError: no enforceable number lies inside of the bound.
    """
    if isinstance(value, float):
        _require_finite(value, place)
        if not value.is_integer():
            return exact_number(_rounded_inward(value, is_lower=is_lower), place)
        value = int(value)
    if is_lower:
        return -_bound_from_above(-value, place)
    return _bound_from_above(value, place)


def next_inside(bound: int | float, *, is_lower: bool) -> int | float:
    """The inclusive bound in place of an exclusive one, closer to it than a part in 10**12.

    An exclusive one would let a long fraction pass that a client's float64 rounds to the bound,
    and the back end lets 0 itself pass an exclusive 0 when the other bound is below 1.
    """
    if bound == 0:
        return MIN_MAGNITUDE if is_lower else -MIN_MAGNITUDE
    exact = Decimal(repr(bound))
    step = Decimal((0, (1,), exact.adjusted() - (_BOUND_DIGITS - 1)))
    inside = exact + step if is_lower else exact - step
    return int(inside) if inside == int(inside) else float(inside)


def _rounded_inward(value: float, *, is_lower: bool) -> float:
    exact = Decimal(repr(value))
    if len(exact.as_tuple().digits) <= _BOUND_DIGITS:
        return value
    unit = Decimal((0, (1,), exact.adjusted() - (_BOUND_DIGITS - 1)))
    return float(exact.quantize(unit, rounding=ROUND_CEILING if is_lower else ROUND_FLOOR))


def _bound_from_above(value: int, place: str) -> int:
    if value < -_MAX_BOUND:
        raise GrammarError(f"{place}: no number within 64 bits satisfies this bound")
    value = min(value, _MAX_BOUND)
    rounded = float(value)
    return int(rounded) if rounded <= value else int(math.nextafter(rounded, -math.inf))


def _require_finite(value: float, place: str) -> None:
    if not math.isfinite(value):
        raise GrammarError(f"{place}: {value!r} is not a JSON number")


def check_constant(value: object, place: str) -> None:
    """Refuse a `const` or `enum` value that the back end would not write exactly.

    Raises:
        GrammarError: names the place inside of the value.
    """
    match value:
        case bool() | None | str():
            return
        case int() | float():
            exact_number(value, place)
        case list():
            for index, item in enumerate(value):
                check_constant(item, f"{place}/{index}")
        case dict():
            for key, item in value.items():
                check_constant(item, f"{place}/{pointer_part(key)}")
        case _:
            raise AssertionError(f"json.loads gave a {type(value)}")


def pointer_part(key: str) -> str:
    """A key as it is written in a JSON pointer, cut when it is long."""
    escaped = key.replace("~", "~0").replace("/", "~1")
    return escaped if len(escaped) <= 80 else f"{escaped[:77]}..."


def canonical(value: object) -> object:
    """A hashable stand-in: equal exactly when JSON Schema calls the values equal (1 and 1.0 are,
    1 and true are not)."""
    match value:
        case bool() | None | str():
            return (type(value).__name__, value)
        case int() | float():
            return ("number", value)
        case list():
            return ("array", tuple(canonical(item) for item in value))
        case dict():
            return ("object", frozenset((key, canonical(item)) for key, item in value.items()))
    raise AssertionError(f"json.loads gave a {type(value)}")


def type_names(values: Sequence[object]) -> frozenset[str]:
    """The JSON Schema types of some values; a whole number is "integer"."""
    return frozenset(_type_name(value) for value in values)


def _type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "integer" if value.is_integer() else "number"
        case str():
            return "string"
        case list():
            return "array"
    return "object"
