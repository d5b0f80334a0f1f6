"""From an open file to its blocks, whatever it is."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import BinaryIO

import orjson

from models.documents.block import Block, Boundary
from models.documents.cleaning import clean
from models.documents.csv_rows import read_csv
from models.documents.docx import read_docx
from models.documents.errors import UnreadableDocumentError
from models.documents.file_kind import FileKind, detect_kind
from models.documents.html import read_html
from models.documents.intercom import read_intercom
from models.documents.json_records import read_json, read_json_lines
from models.documents.markdown import read_markdown
from models.documents.office_package import OfficePackage
from models.documents.pdf import read_pdf
from models.documents.plain_text import open_text, read_plain_text
from models.documents.pptx import read_pptx
from models.documents.settings import Loader
from models.documents.xlsx import read_xlsx

_MAX_SMALL_CHARS = 1000
_MAX_GATHERED_CHARS = 8192


def read_blocks(
    file: BinaryIO, filename: str, *, loader: Loader = Loader.DEFAULT
) -> Iterator[Block]:
    """The file's blocks, cleaned; none of white space alone.

    Raises:
        UnreadableDocumentError: it cannot be read, or has no text.
    """
    is_empty = True
    for block in _gathered(_parse(file, filename, loader)):
        text = clean(block.text)
        if text and not text.isspace():
            is_empty = False
            yield replace(block, text=text)
    if is_empty:
        raise UnreadableDocumentError("There is no text in it.")


def _gathered(blocks: Iterator[Block]) -> Iterator[Block]:
    """Small records put together, which is quicker than a million blocks of a line."""
    texts: list[str] = []
    num_chars = 0
    first: Block | None = None
    for block in blocks:
        is_small = len(block.text) <= _MAX_SMALL_CHARS and block.boundary is Boundary.PARAGRAPH
        if first is not None and not (
            is_small
            and num_chars < _MAX_GATHERED_CHARS
            and (block.heading, block.page) == (first.heading, first.page)
            and block.metadata == first.metadata
        ):
            yield replace(first, text="".join(texts), inner_heading="")
            first = None
        if first is not None:
            texts.append(block.text)
            num_chars += len(block.text)
        elif is_small:
            first, texts, num_chars = block, [block.text], len(block.text)
        else:
            yield block
    if first is not None:
        yield replace(first, text="".join(texts), inner_heading="")


def _parse(file: BinaryIO, filename: str, loader: Loader) -> Iterator[Block]:
    kind = detect_kind(file, filename)
    if kind is FileKind.JSON:
        return _parse_json(file, loader)
    return _PARSERS[kind](file)


def _parse_json(file: BinaryIO, loader: Loader) -> Iterator[Block]:
    text = open_text(file).read()
    try:
        value = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        if "memory" in error.msg:  # it does not raise a MemoryError
            raise MemoryError from error
        if loader is Loader.INTERCOM:
            raise UnreadableDocumentError(f"It is not JSON: {error}.") from error
        first = text.lstrip().partition("\n")[0]
        data = text.encode()
        parse = read_json_lines if _is_json(first) else read_plain_text
        return parse(io.BytesIO(data))
    return read_intercom(value) if loader is Loader.INTERCOM else read_json(value)


def _is_json(line: str) -> bool:
    try:
        orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    return True


def _parse_markdown(file: BinaryIO) -> Iterator[Block]:
    return read_markdown(open_text(file).read())


def _parse_docx(file: BinaryIO) -> Iterator[Block]:
    return read_docx(OfficePackage(file))


def _parse_pptx(file: BinaryIO) -> Iterator[Block]:
    return read_pptx(OfficePackage(file))


def _parse_xlsx(file: BinaryIO) -> Iterator[Block]:
    OfficePackage(file).check_size()
    file.seek(0)
    return read_xlsx(file)


_PARSERS: dict[FileKind, Callable[[BinaryIO], Iterator[Block]]] = {
    FileKind.PDF: read_pdf,
    FileKind.DOCX: _parse_docx,
    FileKind.PPTX: _parse_pptx,
    FileKind.XLSX: _parse_xlsx,
    FileKind.HTML: read_html,
    FileKind.MARKDOWN: _parse_markdown,
    FileKind.CSV: read_csv,
    FileKind.TEXT: read_plain_text,
}
