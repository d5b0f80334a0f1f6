"""Which texts are computed together: batches of few shapes with little padding. Integers only.

A batch is a rectangle of rows (texts) by length (tokens). oneDNN builds and keeps a kernel for each
number of tokens that a matrix product meets (about 3 MB and 6 ms for MiniLM), so there are four
lengths to an octave, and as many rows as a power of two: about thirty sizes in all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

_MIN_LENGTH = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """`max_tokens` bounds rows × length, but one text is always a batch.

    `step_tokens`: how many tokens take as long as a batch's fixed costs; so many may be padding.
    """

    max_tokens: int
    step_tokens: int


@dataclass(frozen=True, slots=True)
class BatchShape:
    num_texts: int
    num_rows: int  # texts and rows of padding
    length: int

    @property
    def num_tokens(self) -> int:
        return self.num_rows * self.length


def padded_length(num_tokens: int) -> int:
    """8, 16, 24, … 64, then 80, 96, 112, 128, 160, …: beyond 64 less than a fifth is padding.

    Not bounded by what a model can read: see `Encoder.max_positions`.
    """
    multiple = _MIN_LENGTH
    while num_tokens > 8 * multiple:
        multiple *= 2
    return -(-num_tokens // multiple) * multiple


def next_batch(lengths: Sequence[int], limits: BatchLimits) -> BatchShape:
    """The batch that the first of these texts starts, with as many of those behind it as fit.

    `lengths`: tokens of the texts, longest first, at least one.
    """
    length = padded_length(lengths[0])
    most = max(1, limits.max_tokens // length)
    spare = limits.step_tokens
    num_texts = 0
    for num_tokens in lengths[:most]:
        spare -= length - padded_length(num_tokens)
        if spare < 0:
            break
        num_texts += 1
    return _whole_rows(num_texts, length, limits)


def _whole_rows(num_texts: int, length: int, limits: BatchLimits) -> BatchShape:
    """Fewer texts, or rows of padding: what wastes less."""
    rows_above = 1 << (num_texts - 1).bit_length()
    padding = (rows_above - num_texts) * length
    if padding <= limits.step_tokens and (
        rows_above * length <= limits.max_tokens or rows_above == num_texts
    ):
        return BatchShape(num_texts, rows_above, length)
    rows_below = 1 << (num_texts.bit_length() - 1)
    return BatchShape(rows_below, rows_below, length)
