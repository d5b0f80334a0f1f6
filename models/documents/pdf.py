"""PDF as blocks: one per page."""

from collections.abc import Iterator
from typing import BinaryIO

from models.documents.block import Block, Boundary
from models.documents.errors import UnreadableDocumentError
from models.documents.extraction import extract_pdf_pages
from models.documents.plain_text import divide_block

_SENTENCE_ENDS = (".", "!", "?", ":", "…", "。", "！", "？", '."', ".)", ".”")


def read_pdf(file: BinaryIO) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: it is damaged or encrypted, or its pages are images.
    """
    pages = extract_pdf_pages(file.read())
    if not any(text.strip() for text in pages):
        raise UnreadableDocumentError(
            f"The PDF has no text on its {len(pages)} page(s): they are images, perhaps scans, "
            "and text in images is not recognized."
        )
    boundary = Boundary.PARAGRAPH
    for number, text in enumerate(pages, start=1):
        is_sentence_end = text.rstrip().endswith(_SENTENCE_ENDS)
        # A sentence may go on over the page.
        separator = "\n\n" if is_sentence_end else "\n"
        block = Block(text=text.rstrip() + separator, boundary=boundary, page=number)
        yield from divide_block(block)
        boundary = Boundary.PARAGRAPH if is_sentence_end else Boundary.LINE
