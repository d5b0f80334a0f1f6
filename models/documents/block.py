"""What a file is once parsed: a sequence of blocks, whose texts put together are its text.

A block is what belongs together in the file: a section, a page, a row, a record, or a piece of a
long one. Blocks come one after the other, so that a large file is never in memory as a whole.
"""

from dataclasses import dataclass
from enum import IntEnum

#: The longest block a parser yields; what is longer is divided.
MAX_BLOCK_CHARS = 65_536


class Boundary(IntEnum):
    """How good a place is for a chunk to end and the next to start: the larger, the better."""

    CHARACTER = 0
    WORD = 1
    LINE = 2
    SENTENCE = 3
    PARAGRAPH = 4
    SECTION = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A piece of a file's text; `text` has the white space that separates it from the next one."""

    text: str
    boundary: Boundary = Boundary.PARAGRAPH  # between the block before and this one
    heading: str = ""  # the headings above it and its own, outermost first, joined by " > "
    # The heading of a chunk that starts inside the block, where it should say more.
    inner_heading: str = ""
    page: int | None = None  # from 1
    # What a loader knows of its source. Blocks with different metadata share no chunk.
    metadata: dict[str, str] | None = None


def join_headings(*headings: str) -> str:
    """The path of headings as it is stored; empty ones are left out."""
    return " > ".join(heading for heading in headings if heading)
