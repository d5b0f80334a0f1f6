"""CSV and its relatives (semicolons, tabs, bars) as blocks: one per row, read row by row."""

import csv
import itertools
from collections import Counter
from collections.abc import Iterator
from typing import BinaryIO

from models.documents.block import Block
from models.documents.errors import UnreadableDocumentError
from models.documents.plain_text import open_text
from models.documents.records import table_blocks

_DELIMITERS = (",", ";", "\t", "|")
_SAMPLE_LINES = 50
_MAX_FIELD_CHARS = 2**24


def read_csv(file: BinaryIO) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: it is not text, or a field never ends.
    """
    csv.field_size_limit(_MAX_FIELD_CHARS)
    lines = open_text(file)
    sample = list(itertools.islice(lines, _SAMPLE_LINES))
    reader = csv.reader(itertools.chain(sample, lines), delimiter=_delimiter(sample))
    try:
        yield from table_blocks(reader)
    except csv.Error as error:
        raise UnreadableDocumentError(f"Line {reader.line_num} is not CSV: {error}.") from error


def _delimiter(sample: list[str]) -> str:
    """The one that gives most rows the same number of columns, and many."""

    def merit(delimiter: str) -> tuple[int, int]:
        try:
            widths = Counter(len(row) for row in csv.reader(sample, delimiter=delimiter) if row)
        except csv.Error:
            return 0, 0
        width, num_rows = max(widths.items(), key=lambda item: item[1], default=(1, 0))
        return (num_rows, width) if width > 1 else (0, 0)

    return max(_DELIMITERS, key=merit)
