"""Excel workbooks as blocks: one per row, with its columns' names, below the sheet's name."""

from collections.abc import Iterator
from typing import BinaryIO

from models.documents.block import Block
from models.documents.extraction import extract_sheets
from models.documents.records import table_blocks


def read_xlsx(file: BinaryIO) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: it is damaged.
    """
    for sheet in extract_sheets(file.read()):
        yield from table_blocks(sheet.rows, heading=sheet.name)
