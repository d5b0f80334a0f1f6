"""Choosing a token of each row as Triton kernels; `models.triton.sampling` launches them.

They choose what `models.engine.sampler` describes: integer weights of at most 2**40, tokens in
order of falling logit and, where those are equal, of rising id. Nothing is sorted. That the best
tokens weigh N in all is a property of a threshold, and the threshold is found by halving the range
of logits; each pass over the row also says which logits lie next to the middle, so that the search
ends at one that is there. A program has one row, which stays in the second-level cache.

Shapes: G = rows, V = vocabulary. Names in capitals are compile-time constants.
"""

import triton
import triton.language as tl

CHOSEN = tl.constexpr(0)
NOT_FINITE = tl.constexpr(1)


@triton.jit
def _logits(row_ptr, start, V: tl.constexpr, TILE: tl.constexpr):
    """A tile of the row, in float32; minus infinity past its end."""
    ids = start + tl.arange(0, TILE)
    return tl.load(row_ptr + ids, mask=ids < V, other=float("-inf")).to(tl.float32)


@triton.jit
def _top(row_ptr, V: tl.constexpr, TILE: tl.constexpr):
    """The largest logit, and whether none of the row is NaN and this one is finite."""
    tops = tl.full([TILE], float("-inf"), tl.float32)
    num_nans = tl.zeros([TILE], tl.int32)
    for start in range(0, V, TILE):
        logits = _logits(row_ptr, start, V, TILE)
        num_nans += (logits != logits).to(tl.int32)  # noqa: PLR0124 (only NaN differs from itself)
        tops = tl.maximum(tops, logits)
    top = tl.max(tops, 0)
    is_finite = (tl.sum(num_nans, 0) == 0) & (tl.abs(top) != float("inf"))
    return tl.where(is_finite, top, 0.0), is_finite


@triton.jit
def _weights(logits, top, temperature, min_p):
    shares = tl.exp((logits - top) / temperature)
    return (tl.where(shares < min_p, 0.0, shares) * 1099511627776.0).to(tl.int64)


@triton.jit
def _measure(
    row_ptr,
    middle,
    top,
    temperature,
    min_p,
    V: tl.constexpr,
    TILE: tl.constexpr,
    IS_COUNT: tl.constexpr,
):
    """Of the logits from `middle` up: their weight or number; the least of them; the largest of
    the others."""
    masses = tl.zeros([TILE], tl.int64)
    above = tl.full([TILE], float("inf"), tl.float32)
    below = tl.full([TILE], float("-inf"), tl.float32)
    for start in range(0, V, TILE):
        logits = _logits(row_ptr, start, V, TILE)
        is_above = logits >= middle
        if IS_COUNT:
            masses += is_above.to(tl.int64)
        else:
            masses += tl.where(is_above, _weights(logits, top, temperature, min_p), 0)
        above = tl.minimum(above, tl.where(is_above, logits, float("inf")))
        below = tl.maximum(below, tl.where(is_above, float("-inf"), logits))
    return tl.sum(masses, 0), tl.min(above, 0), tl.max(below, 0)


@triton.jit
def _threshold(
    row_ptr,
    wanted,
    low,
    top,
    temperature,
    min_p,
    V: tl.constexpr,
    TILE: tl.constexpr,
    IS_COUNT: tl.constexpr,
):
    """The largest logit from which up the tokens weigh (or are) `wanted`, which they do from `low`
    up; and what those above it weigh."""
    high = top
    before = tl.zeros([], tl.int64)
    while low < high:
        middle = low + (high - low) / 2
        middle = tl.where(middle <= low, high, middle)
        mass, least, largest = _measure(row_ptr, middle, top, temperature, min_p, V, TILE, IS_COUNT)
        if mass >= wanted:
            low = least
        else:
            high = largest
            before = mass
    return high, before


@triton.jit
def _nth_equal(row_ptr, value, count, V: tl.constexpr, TILE: tl.constexpr):
    """The id of the token number `count`, from 0, among those with this logit."""
    found = tl.zeros([], tl.int64)
    seen = tl.zeros([], tl.int64)
    start = 0
    while (start < V) & (seen <= count):
        is_equal = (_logits(row_ptr, start, V, TILE) == value).to(tl.int64)
        numbers = seen + tl.cumsum(is_equal, 0)
        ids = start + tl.arange(0, TILE)
        found += tl.sum(tl.where((is_equal > 0) & (numbers == count + 1), ids, 0).to(tl.int64), 0)
        seen += tl.sum(is_equal, 0)
        start += TILE
    return found


@triton.jit
def choose_ranked_kernel(
    logits_ptr,
    knobs_ptr,  # float64 [5, G]: temperature, min_p, top_k, top_p, uniform
    out_ptr,  # int64 [2, G]: token ids, outcomes
    row_stride,
    num_rows,
    V: tl.constexpr,
    TILE: tl.constexpr,
):
    """From the tokens that top_k and top_p keep."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    temperature = tl.load(knobs_ptr + row).to(tl.float32)
    min_p = tl.load(knobs_ptr + num_rows + row).to(tl.float32)
    top_k = tl.load(knobs_ptr + 2 * num_rows + row).to(tl.int64)
    top_p = tl.load(knobs_ptr + 3 * num_rows + row)
    uniform = tl.load(knobs_ptr + 4 * num_rows + row)
    top, is_finite = _top(row_ptr, V, TILE)
    chosen = tl.zeros([], tl.int64)
    if is_finite:
        floor = top - 28.0 * temperature  # less than ln(2**-40): weighs nothing
        mass, low, _ = _measure(row_ptr, floor, top, temperature, min_p, V, TILE, False)
        if top_k < V:
            num_above, low, _ = _measure(row_ptr, floor, top, temperature, min_p, V, TILE, True)
            if num_above > top_k:
                last, _ = _threshold(row_ptr, top_k, low, top, temperature, min_p, V, TILE, True)
                above, _, _ = _measure(row_ptr, last, top, temperature, min_p, V, TILE, False)
                num_upto, _, _ = _measure(row_ptr, last, top, temperature, min_p, V, TILE, True)
                # Of those equal to the last one, as many as top_k leaves room for.
                mass = above - (num_upto - top_k) * _weights(last, top, temperature, min_p)
        target = tl.math.ceil(top_p * mass.to(tl.float64)).to(tl.int64)
        target = tl.minimum(tl.maximum(target, 1), mass)
        last, before = _threshold(row_ptr, target, low, top, temperature, min_p, V, TILE, False)
        weight = _weights(last, top, temperature, min_p)
        num_kept = (target - before + weight - 1) // weight
        kept = before + num_kept * weight
        drawn = (uniform * kept.to(tl.float64)).to(tl.int64)
        value, before = _threshold(
            row_ptr, drawn + 1, last, top, temperature, min_p, V, TILE, False
        )
        number = (drawn - before) // _weights(value, top, temperature, min_p)
        chosen = _nth_equal(row_ptr, value, number, V, TILE)
    tl.store(out_ptr + row, chosen)
    tl.store(out_ptr + num_rows + row, tl.where(is_finite, CHOSEN, NOT_FINITE))


@triton.jit
def choose_whole_kernel(
    logits_ptr,
    knobs_ptr,
    out_ptr,
    row_stride,
    num_rows,
    V: tl.constexpr,
    TILE: tl.constexpr,
):
    """From all tokens, by rising id. Arguments as above."""
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * row_stride
    temperature = tl.load(knobs_ptr + row).to(tl.float32)
    min_p = tl.load(knobs_ptr + num_rows + row).to(tl.float32)
    uniform = tl.load(knobs_ptr + 4 * num_rows + row)
    top, is_finite = _top(row_ptr, V, TILE)
    chosen = tl.zeros([], tl.int64)
    if is_finite:
        mass, _, _ = _measure(
            row_ptr, top - 28.0 * temperature, top, temperature, min_p, V, TILE, False
        )
        drawn = (uniform * mass.to(tl.float64)).to(tl.int64)
        before = tl.zeros([], tl.int64)
        start = 0
        is_open = True
        while is_open & (start < V):
            weights = _weights(_logits(row_ptr, start, V, TILE), top, temperature, min_p)
            upto = before + tl.cumsum(weights, 0)
            total = tl.sum(weights, 0)
            if before + total > drawn:
                chosen = start + tl.sum((upto <= drawn).to(tl.int64), 0)
                is_open = False
            before += total
            start += TILE
    tl.store(out_ptr + row, chosen)
    tl.store(out_ptr + num_rows + row, tl.where(is_finite, CHOSEN, NOT_FINITE))
