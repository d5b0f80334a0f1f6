"""Where the tokens of sequences go that come alone: columns for each one who listens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class TokenColumns:
    """Tokens of which there is nothing more to say, neither the first nor the last of a sequence:
    nearly all of them. Entry i is the next token of sequence `indices[i]` of the request whose key
    is `keys[i]`.
    """

    keys: list[Any] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)  # which of the request's n sequences
    token_ids: list[int] = field(default_factory=list)


class Outlet:
    """Where such tokens of some requests go: a step fills columns, which are handed over whole.

    The requests' keys are chosen by whoever takes the columns.
    """

    __slots__ = ("__weakref__", "_columns", "deliver")

    def __init__(self, deliver: Callable[[TokenColumns], None] | None = None) -> None:
        """`deliver` is called, in the loop's thread, by an engine that has one."""
        self.deliver = deliver
        self._columns = TokenColumns()

    @property
    def is_empty(self) -> bool:
        return not self._columns.token_ids

    def add(self, key: object, index: int, token_id: int) -> None:
        """This happens for every token."""
        columns = self._columns
        columns.keys.append(key)
        columns.indices.append(index)
        columns.token_ids.append(token_id)

    def take(self) -> TokenColumns:
        """What was added since the last time."""
        taken, self._columns = self._columns, TokenColumns()
        return taken
