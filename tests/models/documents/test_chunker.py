"""What the chunker guarantees, on any text, and what it chooses where it has a choice."""

import itertools
import time

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.types import Chunk
from models.documents.block import Block, Boundary
from models.documents.chunker import chunks_of
from models.documents.settings import ChunkSettings


def chunk_settings(max_tokens: int, *, size: int = 1024, overlap: int = 0) -> ChunkSettings:
    return ChunkSettings(
        tokenizer_json="", max_tokens=max_tokens, chunk_size=size, chunk_overlap=overlap
    )


def num_tokens(tokenizer: tokenizers.Tokenizer, text: str) -> int:
    return len(tokenizer.encode(text, add_special_tokens=False))


def sentences(count: int) -> str:
    return " ".join(f"This is sentence number {index} of the text." for index in range(count))


WORDS = st.sampled_from(
    (
        *("the", "Kraken", "naïve", "3.5", "e.g.", "end.", "end!\n", "\n\n", "\n", "- item\n"),
        *("`code`", "\t\t", "#", "_a_a", "x" * 90, "Стол.", "漢字", "。", "ﷺ", "e\u0301\u0301"),
        "👨\u200d👩\u200d👧",
    )
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=400).map(" ".join),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=1500),
)
BLOCKS = st.lists(
    st.builds(
        Block,
        text=TEXTS,
        boundary=st.sampled_from(Boundary),
        heading=st.sampled_from(["", "A", "A > B"]),
        metadata=st.sampled_from([None, {"id": "1"}, {"id": "2"}]),
    ),
    max_size=6,
)


@settings(max_examples=150)
@given(
    blocks=BLOCKS,
    max_tokens=st.integers(16, 200),
    size=st.integers(16, 400),
    overlap=st.floats(0, 0.99),
    is_byte_level=st.booleans(),
)
def test_chunks_cover_the_text_exactly_and_never_exceed_the_model(
    word_pieces: tokenizers.Tokenizer,
    byte_pairs: tokenizers.Tokenizer,
    blocks: list[Block],
    max_tokens: int,
    size: int,
    overlap: float,
    is_byte_level: bool,
) -> None:
    tokenizer = byte_pairs if is_byte_level else word_pieces
    wanted = chunk_settings(max_tokens, size=size, overlap=int(size * overlap))
    chunks = list(chunks_of(blocks, tokenizer, wanted))

    text = "".join(block.text for block in blocks)
    covered = bytearray(len(text))
    for chunk in chunks:
        assert chunk.text == text[chunk.start : chunk.end]
        assert chunk.text.strip()
        assert num_tokens(tokenizer, chunk.text) <= wanted.capacity
        covered[chunk.start : chunk.end] = b"\1" * (chunk.end - chunk.start)
    missing = [c for c, is_covered in zip(text, covered, strict=True) if not is_covered]
    assert "".join(missing).strip() == ""
    ends = [chunk.end for chunk in chunks]
    assert ends == sorted(set(ends)), "each chunk brings something new"
    assert [chunk.start for chunk in chunks] == sorted(chunk.start for chunk in chunks)
    assert chunks == list(chunks_of(blocks, tokenizer, wanted)), "the same each time"


def test_chunks_end_with_a_sentence(word_pieces: tokenizers.Tokenizer) -> None:
    chunks = list(
        chunks_of([Block(text=sentences(100))], word_pieces, chunk_settings(64, overlap=512))
    )
    assert len(chunks) > 10
    assert all(chunk.text.endswith(".") for chunk in chunks)
    assert all(chunk.text.startswith("This is") for chunk in chunks)


def test_hard_wrapped_lines_do_not_end_chunks(word_pieces: tokenizers.Tokenizer) -> None:
    text = sentences(100).replace(" number", "\nnumber")
    chunks = list(chunks_of([Block(text=text)], word_pieces, chunk_settings(64)))
    assert all(chunk.text.endswith(".") for chunk in chunks)


@pytest.mark.parametrize(("asked", "repeated"), [(0, 0), (512, 0.5), (1023, 0.75)])
def test_the_overlap_shrinks_with_the_chunk(
    word_pieces: tokenizers.Tokenizer, asked: int, repeated: float
) -> None:
    wanted = chunk_settings(128, overlap=asked)  # of the 1,024 that the default size has
    chunks = list(chunks_of([Block(text=sentences(200))], word_pieces, wanted))
    for before, chunk in itertools.pairwise(chunks):
        shared = sentences(200)[chunk.start : before.end]
        assert num_tokens(word_pieces, shared) <= 128 * repeated
        if repeated and chunk is not chunks[-1]:
            assert num_tokens(word_pieces, shared) > 128 * repeated - 2 * 16


def test_a_section_starts_a_chunk_when_the_one_before_has_a_quarter(
    word_pieces: tokenizers.Tokenizer,
) -> None:
    blocks = [
        Block(text=f"Title {name}\n\n{sentences(4)}\n\n", boundary=Boundary.SECTION, heading=name)
        for name in ("A", "B", "C")
    ]
    chunks = list(chunks_of(blocks, word_pieces, chunk_settings(60, overlap=512)))
    assert [(chunk.heading, chunk.text[:7]) for chunk in chunks] == [
        ("A", "Title A"),
        ("B", "Title B"),
        ("C", "Title C"),
    ]


def test_small_sections_share_a_chunk(word_pieces: tokenizers.Tokenizer) -> None:
    blocks = [Block(text=f"Title {n}\n\nShort.\n\n", boundary=Boundary.SECTION) for n in range(12)]
    chunks = list(chunks_of(blocks, word_pieces, chunk_settings(100)))
    assert len(chunks) == 1


def test_no_chunk_is_a_heading_alone(word_pieces: tokenizers.Tokenizer) -> None:
    block = Block(text="A heading\n\n" + sentences(60).replace(". ", ", ") + "\n")
    chunks = list(chunks_of([block], word_pieces, chunk_settings(64)))
    assert min(num_tokens(word_pieces, chunk.text) for chunk in chunks) > 16


@pytest.mark.parametrize("count", range(1, 60))
def test_the_last_chunk_is_not_tiny(word_pieces: tokenizers.Tokenizer, count: int) -> None:
    chunks = list(chunks_of([Block(text=sentences(count))], word_pieces, chunk_settings(64)))
    sizes = [num_tokens(word_pieces, chunk.text) for chunk in chunks]
    assert len(sizes) == 1 or min(sizes) >= 16, sizes


def test_a_chunk_that_starts_inside_a_record_says_which_record_it_is_of(
    word_pieces: tokenizers.Tokenizer,
) -> None:
    block = Block(text="name: Ann\n" + sentences(40), heading="S", inner_heading="S > name: Ann")
    chunks = list(chunks_of([block], word_pieces, chunk_settings(64)))
    assert [chunk.heading for chunk in chunks] == ["S"] + ["S > name: Ann"] * (len(chunks) - 1)


def test_blocks_of_different_sources_share_no_chunk(word_pieces: tokenizers.Tokenizer) -> None:
    blocks = [Block(text=f"Text {n}.\n\n", metadata={"id": str(n // 2)}) for n in range(6)]
    chunks = list(chunks_of(blocks, word_pieces, chunk_settings(64)))
    assert [(chunk.text, chunk.loader_metadata) for chunk in chunks] == [
        ("Text 0.\n\nText 1.", {"id": "0"}),
        ("Text 2.\n\nText 3.", {"id": "1"}),
        ("Text 4.\n\nText 5.", {"id": "2"}),
    ]


def test_chunks_come_before_the_text_has_ended(word_pieces: tokenizers.Tokenizer) -> None:
    taken = 0

    def endless() -> object:
        nonlocal taken
        while True:
            taken += 1
            yield Block(text=f"Sentence number {taken} has come.\n\n")

    chunks = chunks_of(endless(), word_pieces, chunk_settings(64))  # type: ignore[arg-type]
    first = [next(chunks) for _ in range(100)]
    assert [chunk.text.split()[2] for chunk in first[:2]] == ["1", first[1].text.split()[2]]
    assert taken < 1200


def test_how_a_text_is_divided_into_blocks_does_not_matter(
    word_pieces: tokenizers.Tokenizer,
) -> None:
    paragraphs = [f"{sentences(n % 5 + 1)}\n\n" for n in range(60)]
    wanted = chunk_settings(100, overlap=512)

    def places(blocks: list[Block]) -> list[tuple[int, int]]:
        return [(c.start, c.end) for c in chunks_of(blocks, word_pieces, wanted)]

    whole = places([Block(text="".join(paragraphs))])
    assert whole == places([Block(text=text) for text in paragraphs])


# Text that is hard to divide takes about as long as other text: each of these took the splitter
# that was tried first 17 to 56 s.


@pytest.mark.parametrize(
    "text", ["漢字", "_a", ">", "1", "!", "\u200d", "e\u0301", "👨‍👩‍👧", "[", " x", ". "]
)
def test_no_text_takes_long(word_pieces: tokenizers.Tokenizer, text: str) -> None:
    block = Block(text=text * (65_536 // len(text)))
    started = time.process_time()
    chunks = list(chunks_of([block], word_pieces, chunk_settings(126, overlap=512)))
    assert time.process_time() - started < 10
    assert chunks
    assert max(len(chunk.text) for chunk in chunks) <= 126 * 16


def test_a_word_without_an_end_is_divided(byte_pairs: tokenizers.Tokenizer) -> None:
    chunks = list(chunks_of([Block(text="a" * 10_000)], byte_pairs, chunk_settings(64)))
    assert "".join(chunk.text for chunk in chunks) == "a" * 10_000


def test_a_character_is_not_divided_from_its_accent(byte_pairs: tokenizers.Tokenizer) -> None:
    chunks = list(chunks_of([Block(text="e\u0301" * 5000)], byte_pairs, chunk_settings(64)))
    assert len(chunks) > 1
    assert all(chunk.text.startswith("e") for chunk in chunks)


def test_nothing_has_no_chunks(word_pieces: tokenizers.Tokenizer) -> None:
    empty: list[Chunk] = list(chunks_of([Block(text=" \n\n ")], word_pieces, chunk_settings(64)))
    assert empty == []
