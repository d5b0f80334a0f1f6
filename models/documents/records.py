"""Rows and records as text: a line `name: value` per field, so that each tells what it is."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from models.documents.block import Block, Boundary, join_headings
from models.documents.plain_text import divide_block

_MAX_LABEL_CHARS = 80


def record_blocks(fields: Iterable[tuple[str, str]], *, heading: str = "") -> Iterator[Block]:
    """A record; fields without a value are left out, a record without fields has no block.

    A chunk that starts within it, because it is long, has its first field in the heading.
    """
    lines = [f"{name}: {value}" if name else value for name, value in fields if value.strip()]
    if not lines:
        return
    label = " ".join(lines[0].split())
    if len(label) > _MAX_LABEL_CHARS:
        label = label[: _MAX_LABEL_CHARS - 1] + "…"
    block = Block(
        text="\n".join(lines) + "\n\n",
        heading=heading,
        inner_heading=join_headings(heading, label),
    )
    yield from divide_block(block)


def below_heading(blocks: Iterable[Block], heading: str) -> Iterator[Block]:
    """The blocks, with their heading written out before the first: it may share its chunk with
    what is below another heading."""
    for index, block in enumerate(blocks):
        if index == 0 and heading:
            text = f"{heading}\n\n{block.text}"
            yield replace(block, text=text, boundary=Boundary.SECTION)
        else:
            yield block


def table_blocks(rows: Iterable[Sequence[str]], *, heading: str = "") -> Iterator[Block]:
    """The rows of a table whose first row may name its columns."""
    yield from below_heading(_row_blocks(rows, heading), heading)


def _row_blocks(rows: Iterable[Sequence[str]], heading: str) -> Iterator[Block]:
    iterator = iter(rows)
    first = next((row for row in iterator if any(cell.strip() for cell in row)), None)
    if first is None:
        return
    if is_header(first):
        names = [" ".join(cell.split()) for cell in first]
    else:
        names = []
        yield from record_blocks(_named(names, first), heading=heading)
    num_rows = 0
    for row in iterator:
        num_rows += 1
        yield from record_blocks(_named(names, row), heading=heading)
    if names and not num_rows:  # a single row is not a heading of nothing
        yield from record_blocks([("", cell) for cell in first], heading=heading)


def is_header(row: Sequence[str]) -> bool:
    """Whether a table's first row names its columns: several, no two alike, and none a number."""
    cells = [cell.strip() for cell in row]
    named = [cell for cell in cells if cell]
    return (
        len(cells) > 1
        and len(named) >= len(cells) - 1  # the corner of a table may be empty
        and len(set(named)) == len(named)
        and all(len(cell) <= _MAX_LABEL_CHARS and not _is_number(cell) for cell in named)
    )


def _named(names: Sequence[str], row: Sequence[str]) -> Iterator[tuple[str, str]]:
    if not names and len(row) == 1:  # lines of text
        yield "", row[0]
        return
    for index, cell in enumerate(row):
        is_named = index < len(names) and names[index]
        yield (names[index] if is_named else f"column {index + 1}"), cell


def _is_number(text: str) -> bool:
    return not any(character.isalpha() for character in text) and any(
        character.isdigit() for character in text
    )
