import io

from models.documents.block import Block
from models.documents.office_package import OfficePackage
from models.documents.pptx import read_pptx
from tests.models.documents.made_files import pptx


def read(data: bytes) -> list[Block]:
    return list(read_pptx(OfficePackage(io.BytesIO(data))))


def test_each_slide_is_a_page_below_its_title() -> None:
    blocks = read(pptx([("First & foremost", "Body <one>"), ("Second", "Body two")]))
    assert [(block.page, block.heading, block.text.strip()) for block in blocks] == [
        (1, "First & foremost", "First & foremost\n\nBody <one>"),
        (2, "Second", "Second\n\nBody two"),
    ]


def test_slides_come_in_the_order_of_the_presentation_with_their_notes() -> None:
    data = pptx([("A", "a"), ("B", "b"), ("C", "c")], notes={1: "Say this."}, order=[2, 1])
    assert [(block.page, block.text.strip()) for block in read(data)] == [
        (1, "C\n\nc"),
        (2, "B\n\nb\n\nSay this."),
    ]


def test_a_slide_without_text_has_no_block_but_counts() -> None:
    data = pptx([("", ""), ("Second", "text")])
    assert [block.page for block in read(data)] == [2]
