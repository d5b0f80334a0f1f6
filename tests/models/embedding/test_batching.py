"""Batches: few shapes, little padding, and every text sooner or later."""

from hypothesis import given
from hypothesis import strategies as st

from models.embedding.batching import BatchLimits, next_batch, padded_length

LIMITS = BatchLimits(max_tokens=2048, step_tokens=128)
LENGTHS = st.lists(st.integers(1, 512), min_size=1, max_size=300).map(
    lambda lengths: sorted(lengths, reverse=True)
)


def test_lengths_have_four_steps_to_an_octave() -> None:
    assert sorted({padded_length(n) for n in range(1, 257)}) == [
        *range(8, 65, 8),
        *(80, 96, 112, 128),
        *(160, 192, 224, 256),
    ]
    for n in range(64, 40_000):
        assert n <= padded_length(n) < 1.25 * n


@given(LENGTHS)
def test_a_batch_holds_its_texts_within_its_limits(lengths: list[int]) -> None:
    shape = next_batch(lengths, LIMITS)
    assert 1 <= shape.num_texts <= shape.num_rows
    assert shape.length >= lengths[0]
    assert shape.num_tokens <= LIMITS.max_tokens or shape.num_texts == 1
    assert shape.num_rows.bit_count() == 1
    padding = shape.num_tokens - sum(map(padded_length, lengths[: shape.num_texts]))
    assert padding <= 2 * LIMITS.step_tokens


@given(LENGTHS)
def test_all_texts_are_done_in_the_end_with_few_shapes(lengths: list[int]) -> None:
    sizes = set()
    while lengths:
        shape = next_batch(lengths, LIMITS)
        sizes.add(shape.num_tokens)
        lengths = lengths[shape.num_texts :]
    assert sizes <= ALL_SIZES


ALL_SIZES = {
    next_batch([length] * count, LIMITS).num_tokens
    for length in range(1, 513)
    for count in range(1, 257)
}


def test_there_are_few_sizes_for_a_matrix_product_to_meet() -> None:
    assert len(ALL_SIZES) <= 32


def test_one_text_beyond_every_limit_is_still_a_batch() -> None:
    shape = next_batch([5000, 5000], LIMITS)
    assert (shape.num_texts, shape.num_rows, shape.length) == (1, 1, 5120)


def test_short_texts_share_a_batch_and_long_ones_are_not_padded_with_them() -> None:
    assert next_batch([16, 12, 9, 7, 5], LIMITS).num_texts == 5
    assert next_batch([256, 250, 240, 16, 16], LIMITS).num_texts == 2
    assert next_batch([24] * 7, LIMITS).num_rows == 8  # a row of padding is cheaper than a batch
    assert next_batch([256] * 7, LIMITS).num_rows == 4  # and here it is not
