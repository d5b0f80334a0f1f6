import io

import pytest

from models.documents.block import Boundary
from models.documents.errors import UnreadableDocumentError
from models.documents.pdf import read_pdf
from tests.models.documents.made_files import pdf


def test_each_page_is_a_block_with_its_number() -> None:
    pages = [f"Section {number}: Overview\nPage (text) 100% \\ café." for number in (1, 2, 3)]
    blocks = list(read_pdf(io.BytesIO(pdf(pages))))
    assert [block.page for block in blocks] == [1, 2, 3]
    assert [block.text.replace("\r\n", "\n").strip() for block in blocks] == pages


def test_a_sentence_may_go_on_over_the_page() -> None:
    blocks = list(read_pdf(io.BytesIO(pdf(["One sentence goes", "on here.", "Another."]))))
    assert [block.boundary for block in blocks] == [
        Boundary.PARAGRAPH,
        Boundary.LINE,
        Boundary.PARAGRAPH,
    ]


def test_an_empty_page_is_counted() -> None:
    blocks = list(read_pdf(io.BytesIO(pdf(["First.", "", "Third."]))))
    assert [block.page for block in blocks if block.text.strip()] == [1, 3]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (pdf(["", ""]), "no text on its 2 page"),
        (pdf(["secret"], password="x"), "encrypted"),
        (pdf(["text"])[:300], "cannot be parsed"),
        (b"%PDF-1.7 rubbish", "cannot be parsed"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableDocumentError, match=reason):
        list(read_pdf(io.BytesIO(data)))
