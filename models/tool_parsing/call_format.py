"""What the ways in which models write function calls have in common: the interface of the formats.

`llama_json`, `hermes` and `mistral` implement it; `call_formats` finds the right one.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Protocol

from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import Reading, TextFeed


@dataclass(frozen=True, slots=True, kw_only=True)
class GuidedFunction:
    """A function that may be called, with the schema that its arguments must match."""

    name: str
    schema_text: str  # JSON Schema of an object


class CallFormat(Protocol):
    """How one family of models writes calls."""

    @property
    def name(self) -> str:
        """As the configuration spells it."""
        ...

    @property
    def marker_tokens(self) -> tuple[str, ...]:
        """Tokens that the format is made of: their text must be shown to `read`."""
        ...

    def new_call_id(self) -> str:
        """An id that the family's chat templates accept."""
        ...

    def read(self, feed: TextFeed, parts: PartsWriter, names: Set[str]) -> Reading[None]:
        """Content, and calls of the functions `names`, until the text ends or `parts.is_full`."""
        ...

    def forced_rules(self, functions: Sequence[GuidedFunction], *, is_one: bool) -> str:
        """Lark rules where `calls` is one or more calls and nothing else."""
        ...

    def free_rules(
        self, functions: Sequence[GuidedFunction], *, is_one: bool, excluded: Sequence[str] = ()
    ) -> str:
        """Lark rules where `message` is any text, in which a call that is begun becomes valid.

        Args:
            is_one: the message ends with its first call.
            excluded: regular expressions that no piece of text, from its beginning, may match.
        """
        ...
