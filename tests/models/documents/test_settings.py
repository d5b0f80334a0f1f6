import pytest

from models.documents.settings import ChunkSettings


def settings(*, max_tokens: int, size: int = 1024, overlap: int = 512) -> ChunkSettings:
    return ChunkSettings(
        tokenizer_json="{}", max_tokens=max_tokens, chunk_size=size, chunk_overlap=overlap
    )


@pytest.mark.parametrize(
    ("wanted", "capacity", "overlap"),
    [
        (settings(max_tokens=8192), 1024, 512),
        (settings(max_tokens=126), 126, 63),
        (settings(max_tokens=512, size=256, overlap=0), 256, 0),
        (settings(max_tokens=510, size=1000, overlap=100), 510, 51),
        (settings(max_tokens=510, size=100, overlap=99), 100, 75),
    ],
)
def test_a_chunk_has_as_many_tokens_as_the_model_reads(
    wanted: ChunkSettings, capacity: int, overlap: int
) -> None:
    assert (wanted.capacity, wanted.overlap) == (capacity, overlap)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 8}, "reads 8 tokens of a passage; chunks have at least 16"),
        ({"max_tokens": 512, "size": 4, "overlap": 0}, r"chunk_size \(4\) must be at least 16"),
        ({"max_tokens": 512, "size": 64, "overlap": 64}, r"chunk_overlap \(64\).*less than"),
        ({"max_tokens": 512, "overlap": -1}, r"chunk_overlap \(-1\)"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(values: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**values)
