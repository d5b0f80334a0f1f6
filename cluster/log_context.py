"""Whose work runs just now: what every line that it logs says of it.

Tasks and threads (`asyncio.to_thread`) started within it inherit it; another process has
to be told.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

_NOTHING: Mapping[str, str] = MappingProxyType({})
_tags: ContextVar[Mapping[str, str]] = ContextVar("log_tags", default=_NOTHING)


def log_tags() -> Mapping[str, str]:
    """By name, in the order in which lines show them."""
    return _tags.get()


def add_log_tags(**tags: str) -> None:
    """Until the end of the surrounding `tagged` or of this task. Empty ones are left out."""
    _tags.set({**_tags.get(), **{name: value for name, value in tags.items() if value}})


@contextmanager
def tagged(**tags: str) -> Iterator[None]:
    """Lines logged within it say so: `request_id`, `tenant`, `task_id`. Empty ones are left out."""
    token = _tags.set(_tags.get())
    try:
        add_log_tags(**tags)
        yield
    finally:
        _tags.reset(token)
