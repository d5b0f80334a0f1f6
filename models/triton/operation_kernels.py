"""The small operations of a decoder layer as Triton kernels; `models.triton.operations` launches
them. Arithmetic is float32, and rounded to the tensors' type where torch's own operations round.

Shapes: T = tokens, M = model width, F = feed-forward width, N = heads, D = head width. Names in
capitals are compile-time constants; PADDED_ ones are powers of two.
"""

import triton
import triton.language as tl


@triton.jit
def add_rms_norm_kernel(
    x_ptr,
    added_ptr,
    weight_ptr,
    out_ptr,
    eps,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    HAS_ADDED: tl.constexpr,
):
    """One row: x += added, and its norm times the weight."""
    columns = tl.arange(0, PADDED_WIDTH)
    is_column = columns < WIDTH
    start = tl.program_id(0).to(tl.int64) * WIDTH
    x = tl.load(x_ptr + start + columns, mask=is_column, other=0.0)
    if HAS_ADDED:
        added = tl.load(added_ptr + start + columns, mask=is_column, other=0.0)
        x = (x.to(tl.float32) + added.to(tl.float32)).to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + start + columns, x, mask=is_column)
    wide = x.to(tl.float32)
    scale = tl.rsqrt(tl.sum(wide * wide, 0) / WIDTH + eps)
    normed = (wide * scale).to(x_ptr.dtype.element_ty).to(tl.float32)
    weight = tl.load(weight_ptr + columns, mask=is_column, other=0.0).to(tl.float32)
    out = (normed * weight).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + start + columns, out, mask=is_column)


@triton.jit(do_not_specialize_on_alignment=["positions_ptr"])
def rotate_kernel(
    x_ptr,  # [T, N, D], heads of D numbers lie together
    positions_ptr,
    table_ptr,  # [positions, 2, D]: see `models.layers.Rope`
    query_norm_ptr,
    key_norm_ptr,
    x_stride,
    num_query_heads,
    eps,
    HEAD_DIM: tl.constexpr,
    PADDED_HALF: tl.constexpr,
    HAS_NORMS: tl.constexpr,
):
    """One head of one token, in place: its norm if it has one, and its rotation."""
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    HALF: tl.constexpr = HEAD_DIM // 2
    pairs = tl.arange(0, PADDED_HALF)
    is_pair = pairs < HALF
    place = x_ptr + token * x_stride + head * HEAD_DIM + pairs
    low = tl.load(place, mask=is_pair, other=0.0).to(tl.float32)
    high = tl.load(place + HALF, mask=is_pair, other=0.0).to(tl.float32)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    if HAS_NORMS:
        scale = tl.rsqrt((tl.sum(low * low, 0) + tl.sum(high * high, 0)) / HEAD_DIM + eps)
        norm_ptr = tl.where(head < num_query_heads, query_norm_ptr, key_norm_ptr)
        low_weight = tl.load(norm_ptr + pairs, mask=is_pair, other=0.0).to(tl.float32)
        high_weight = tl.load(norm_ptr + HALF + pairs, mask=is_pair, other=0.0).to(tl.float32)
        low = ((low * scale).to(dtype).to(tl.float32) * low_weight).to(dtype).to(tl.float32)
        high = ((high * scale).to(dtype).to(tl.float32) * high_weight).to(dtype).to(tl.float32)
    position = tl.load(positions_ptr + token).to(tl.int64)
    angle = table_ptr + position * 2 * HEAD_DIM + pairs
    cosine = tl.load(angle, mask=is_pair, other=0.0).to(tl.float32)
    # The second half's sines: those of the first are the same with the other sign.
    sine = tl.load(angle + HEAD_DIM + HALF, mask=is_pair, other=0.0).to(tl.float32)
    tl.store(place, (low * cosine - high * sine).to(dtype), mask=is_pair)
    tl.store(place + HALF, (high * cosine + low * sine).to(dtype), mask=is_pair)


@triton.jit
def silu_mul_kernel(gate_up_ptr, out_ptr, WIDTH: tl.constexpr, TILE: tl.constexpr):
    """A tile of one row: silu(gate) · up."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * TILE + tl.arange(0, TILE)
    is_column = columns < WIDTH
    place = gate_up_ptr + row * 2 * WIDTH + columns
    gate = tl.load(place, mask=is_column, other=0.0).to(tl.float32)
    up = tl.load(place + WIDTH, mask=is_column, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * WIDTH + columns, out.to(out_ptr.dtype.element_ty), mask=is_column)


@triton.jit
def quantize_fp8_kernel(
    x_ptr,
    levels_ptr,
    scales_ptr,
    smallest,
    WIDTH: tl.constexpr,
    PADDED_WIDTH: tl.constexpr,
    LARGEST: tl.constexpr,
):
    """One row: its scale is its largest number over the largest of fp8."""
    columns = tl.arange(0, PADDED_WIDTH)
    is_column = columns < WIDTH
    row = tl.program_id(0).to(tl.int64)
    x = tl.load(x_ptr + row * WIDTH + columns, mask=is_column, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(x), 0), smallest) / LARGEST
    levels = tl.minimum(tl.maximum(x / scale, -LARGEST), LARGEST)
    # Only what is not a number differs from itself; its row shall not be one either.
    num_nans = tl.sum((x != x).to(tl.int32), 0)  # noqa: PLR0124
    scale = tl.where(num_nans > 0, float("nan"), scale)
    tl.store(levels_ptr + row * WIDTH + columns, levels.to(levels_ptr.dtype.element_ty), is_column)
    tl.store(scales_ptr + row, scale)
