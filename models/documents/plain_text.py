"""Plain text, read piece by piece; any other text, divided into blocks of a bounded length."""

import io
from collections.abc import Iterator
from dataclasses import replace
from typing import BinaryIO

from models.documents.block import MAX_BLOCK_CHARS, Block, Boundary
from models.documents.text_encoding import detect_encoding

# Where a piece may end, best first.
_ENDS = (
    ("\n\n", Boundary.PARAGRAPH),
    (". ", Boundary.SENTENCE),
    ("。", Boundary.SENTENCE),
    ("\n", Boundary.LINE),
    (" ", Boundary.WORD),
)


def open_text(file: BinaryIO) -> io.TextIOWrapper:
    """The file's text from its start, decoded as it is read; line ends are line feeds.

    Raises:
        UnreadableDocumentError: it is not text.
    """
    encoding = detect_encoding(file)
    return io.TextIOWrapper(file, encoding=encoding, errors="replace", newline=None)


def read_plain_text(file: BinaryIO) -> Iterator[Block]:
    """Raises as `open_text` does."""
    text_file = open_text(file)
    rest, boundary = "", Boundary.PARAGRAPH
    while piece := text_file.read(MAX_BLOCK_CHARS):
        text = rest + piece
        while len(text) > MAX_BLOCK_CHARS:
            end, next_boundary = _end_of_piece(text)
            yield Block(text=text[:end], boundary=boundary)
            text, boundary = text[end:], next_boundary
        rest = text
    if rest:
        yield Block(text=rest, boundary=boundary)


def divide_block(block: Block) -> Iterator[Block]:
    """The block itself, or several that together have its text."""
    text, boundary = block.text, block.boundary
    start = 0
    while len(text) - start > MAX_BLOCK_CHARS:
        end, next_boundary = _end_of_piece(text[start : start + MAX_BLOCK_CHARS])
        piece = text[start : start + end]
        yield replace(
            block,
            text=piece,
            boundary=boundary,
            heading=block.heading if start == 0 else block.inner_heading or block.heading,
        )
        start, boundary = start + end, next_boundary
    if start == 0:
        yield block
    else:
        heading = block.inner_heading or block.heading
        yield replace(block, text=text[start:], boundary=boundary, heading=heading)


def _end_of_piece(text: str) -> tuple[int, Boundary]:
    """Where the first piece of a text ends that is too long: in its second half, if it can."""
    for mark, boundary in _ENDS:
        place = text.rfind(mark, MAX_BLOCK_CHARS // 2, MAX_BLOCK_CHARS)
        if place >= 0:
            return place + len(mark), boundary
    return min(len(text), MAX_BLOCK_CHARS), Boundary.CHARACTER
