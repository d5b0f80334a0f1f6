"""What stands in a request's query and headers, checked: wrong values are named with the place."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from starlette.requests import Request
from starlette.types import Scope

from cluster.errors import FieldProblem, ValidationError
from cluster.openai_schema.values import shown

Value = TypeVar("Value")

MAX_PAGE_SIZE = 1000
_MAX_KEY_CHARS = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """`page[number]`, from 1, and `page[size]`."""

    number: int
    size: int

    @property
    def offset(self) -> int:
        return (self.number - 1) * self.size


def read_page(scope: Scope) -> Page:
    """The page that is asked for; the first, as large as can be, when none is. 0 is the first too.

    Raises:
        ValidationError: a number is none, or out of range.
    """
    number = read_integer(scope, "page[number]", default=1, low=0, high=1_000_000)
    size = read_integer(scope, "page[size]", default=MAX_PAGE_SIZE, low=1, high=MAX_PAGE_SIZE)
    return Page(number=max(1, number), size=size)


def read_choices(
    scope: Scope, name: str, choices: Mapping[str, Sequence[Value]], *, default: Sequence[str]
) -> list[Value]:
    """What the values of a parameter mean together; repeated, or joined by commas.

    Raises:
        ValidationError: one is not among the choices.
    """
    given = [
        word.strip()
        for text in Request(scope).query_params.getlist(name)
        for word in text.split(",")
        if word.strip()
    ]
    found: list[Value] = []
    for word in given or default:
        if word not in choices:
            raise _problem("query", name, f"must be of {', '.join(choices)}; given {shown(word)}")
        found += choices[word]
    return list(dict.fromkeys(found))


def read_idempotency_key(scope: Scope) -> str:
    """ "" when there is none.

    Raises:
        ValidationError: it is too long.
    """
    key = Request(scope).headers.get("idempotency-key", "")
    if len(key) > _MAX_KEY_CHARS:
        message = f"must have at most {_MAX_KEY_CHARS} characters; given {len(key)}"
        raise _problem("header", "Idempotency-Key", message)
    return key


def read_choice(scope: Scope, name: str, choices: Sequence[str], *, default: str) -> str:
    """One of a few words.

    Raises:
        ValidationError: it is another one.
    """
    text = Request(scope).query_params.get(name)
    if text is not None and text not in choices:
        raise _problem("query", name, f"must be one of {', '.join(choices)}; given {shown(text)}")
    return default if text is None else text


def read_integer(scope: Scope, name: str, *, default: int, low: int, high: int) -> int:
    """
    Raises:
        ValidationError: it is none, or out of range.
    """
    text = Request(scope).query_params.get(name)
    if text is None:
        return default
    digits = text.strip()
    if not digits.isdecimal() or len(digits) > 9 or not low <= int(digits) <= high:
        message = f"must be an integer in [{low}, {high}]; given {shown(text)}"
        raise _problem("query", name, message)
    return int(digits)


def read_date(scope: Scope, name: str, *, default: datetime.date) -> datetime.date:
    """A day like 2026-11-26.

    Raises:
        ValidationError: it is none.
    """
    text = Request(scope).query_params.get(name)
    if text is None:
        return default
    try:
        if len(text) != len("2026-11-26"):
            raise ValueError
        return datetime.date.fromisoformat(text)
    except ValueError:
        message = f"must be a day like 2026-11-26; given {shown(text)}"
        raise _problem("query", name, message) from None


def _problem(place: str, name: str, message: str) -> ValidationError:
    return ValidationError([FieldProblem(loc=(name,), message=message, place=place)])
