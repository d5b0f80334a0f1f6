"""Markdown as blocks: one per section, with the path of headings above it.

Knows headings of both kinds, fenced code (where `#` is none) and front matter. The text stays as
it is written.
"""

from collections.abc import Iterator

from models.documents.block import Block, Boundary, join_headings
from models.documents.plain_text import divide_block

_MAX_LEVEL = 6
_MAX_HEADING_CHARS = 200
_FENCES = ("```", "~~~")


def read_markdown(text: str, *, title: str = "") -> Iterator[Block]:
    """`title`: what the headings are below, such as a page's title."""
    sections = _Sections(title)
    for line in text.splitlines(keepends=True):
        block = sections.add(line)
        if block is not None:
            yield from divide_block(block)
    yield from divide_block(sections.block())


class _Sections:
    """The section that is being read, and the headings it stands under."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._headings = [""] * _MAX_LEVEL
        self._lines: list[str] = []
        self._fence = ""
        self._is_front_matter = False
        self._is_at_start = True

    def add(self, line: str) -> Block | None:
        """The section before, if the line begins another one."""
        stripped = line.strip()
        is_at_start, self._is_at_start = self._is_at_start, False
        if self._is_within_literal(stripped, is_at_start=is_at_start):
            self._lines.append(line)
            return None
        level, heading = _heading(line)
        if level:
            return self._begin(level, heading, [line])
        level = self._underline_level(stripped)
        if level:
            above = self._lines.pop()
            return self._begin(level, above.strip(), [above, line])
        self._lines.append(line)
        return None

    def block(self) -> Block:
        """The section as far as it has been read."""
        shown = [heading for heading in self._headings if heading]
        is_in_title = bool(shown) and shown[0] in self._title
        return Block(
            text="".join(self._lines),
            boundary=Boundary.SECTION,
            heading=join_headings("" if is_in_title else self._title, *shown),
        )

    def _begin(self, level: int, heading: str, lines: list[str]) -> Block:
        before = self.block()
        self._lines = lines
        self._headings[level - 1 :] = [""] * (_MAX_LEVEL - level + 1)
        self._headings[level - 1] = heading[:_MAX_HEADING_CHARS]
        return before

    def _is_within_literal(self, stripped: str, *, is_at_start: bool) -> bool:
        """Whether the line is code or front matter, or begins or ends it."""
        if self._is_front_matter:
            self._is_front_matter = stripped not in ("---", "...")
            return True
        if is_at_start and stripped == "---":
            self._is_front_matter = True
            return True
        if self._fence:
            if stripped.startswith(self._fence) and not stripped.strip(self._fence[0]):
                self._fence = ""
            return True
        for mark in _FENCES:
            if stripped.startswith(mark):
                self._fence = mark
                return True
        return False

    def _underline_level(self, stripped: str) -> int:
        """1 or 2 for a line of `=` or `-` under a line of text; else 0."""
        if not stripped or not self._lines or (stripped.strip("=") and stripped.strip("-")):
            return 0
        above = self._lines[-1].strip()
        before = self._lines[-2].strip() if len(self._lines) > 1 else ""
        if (
            not above
            or (before and not before.startswith(_FENCES))
            or above[0] in "#>|-*+`"
            or len(stripped) < 2
        ):
            return 0
        return 1 if stripped[0] == "=" else 2


def _heading(line: str) -> tuple[int, str]:
    """Level and text of a `## heading`; level 0 if it is none."""
    text = line.lstrip(" ")
    if len(line) - len(text) > 3 or not text.startswith("#"):
        return 0, ""
    rest = text.lstrip("#")
    level = len(text) - len(rest)
    if level > _MAX_LEVEL or rest[:1] not in (" ", "\t", "\n", ""):
        return 0, ""
    heading = rest.strip()
    without_end = heading.rstrip("#")
    if without_end != heading and without_end[-1:] in (" ", "\t", ""):
        heading = without_end.strip()
    return level, heading
