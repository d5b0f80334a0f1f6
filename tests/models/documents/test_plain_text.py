import io

import pytest

from models.documents.block import MAX_BLOCK_CHARS, Block, Boundary
from models.documents.plain_text import divide_block, read_plain_text


@pytest.mark.parametrize(
    ("unit", "boundary"),
    [
        ("A paragraph of text. It has two sentences.\n\n", Boundary.PARAGRAPH),
        ("One sentence after the other. ", Boundary.SENTENCE),
        ("a line without an end\n", Boundary.LINE),
        ("word ", Boundary.WORD),
        ("x", Boundary.CHARACTER),
    ],
)
def test_long_text_is_divided_where_it_pauses(unit: str, boundary: Boundary) -> None:
    text = unit * (300_000 // len(unit))
    blocks = list(read_plain_text(io.BytesIO(text.encode())))
    assert "".join(block.text for block in blocks) == text
    assert len(blocks) > 3
    assert all(len(block.text) <= MAX_BLOCK_CHARS for block in blocks)
    assert {block.boundary for block in blocks[1:]} == {boundary}


def test_a_block_that_is_too_long_becomes_several_with_its_inner_heading() -> None:
    block = Block(
        text="Some words. " * 20_000, heading="H", inner_heading="H > x", page=3, metadata={"a": ""}
    )
    blocks = list(divide_block(block))
    assert "".join(piece.text for piece in blocks) == block.text
    assert [piece.heading for piece in blocks] == ["H", *["H > x"] * (len(blocks) - 1)]
    assert all((piece.page, piece.metadata) == (3, {"a": ""}) for piece in blocks)


def test_a_short_block_stays_as_it_is() -> None:
    block = Block(text="short")
    assert list(divide_block(block)) == [block]
