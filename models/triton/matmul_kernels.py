"""Products of few rows with a large matrix as a Triton kernel; `models.triton.matmul` launches it.

Such a product takes as long as reading the matrix: each program reads some of its rows once, and
all of the few activations, which the second-level cache holds.

Shapes: T = tokens, O = outputs, I = inputs. Names in capitals are compile-time constants.
"""

import triton
import triton.language as tl


@triton.jit
def multiply_fp8_kernel(
    x_ptr,  # fp8 [T, I]
    x_scales_ptr,  # float32 [T]
    weight_ptr,  # fp8 [O, I]
    weight_scales_ptr,  # float32 [O]
    out_ptr,  # [T, O]
    num_tokens,
    num_outputs,
    I: tl.constexpr,  # noqa: E741 (inputs)
    ROWS: tl.constexpr,  # at least the tokens
    TILE_O: tl.constexpr,
    TILE_I: tl.constexpr,
    DOT: tl.constexpr,
):
    rows = tl.arange(0, ROWS)
    outputs = tl.program_id(0) * TILE_O + tl.arange(0, TILE_O)
    is_row, is_output = rows < num_tokens, outputs < num_outputs
    inputs = tl.arange(0, TILE_I)
    x_place = x_ptr + rows[:, None] * I + inputs[None, :]
    weight_place = weight_ptr + outputs[:, None].to(tl.int64) * I + inputs[None, :]
    sums = tl.zeros([ROWS, TILE_O], tl.float32)
    for start in range(0, I, TILE_I):
        is_input = (start + inputs < I)[None, :]
        x = tl.load(x_place + start, mask=is_row[:, None] & is_input, other=0.0)
        weight = tl.load(
            weight_place + start,
            mask=is_output[:, None] & is_input,
            other=0.0,
            eviction_policy="evict_first",
        )
        sums = tl.dot(x.to(DOT), weight.to(DOT).T, sums)
    x_scales = tl.load(x_scales_ptr + rows, mask=is_row, other=0.0)
    weight_scales = tl.load(weight_scales_ptr + outputs, mask=is_output, other=0.0)
    out = sums * x_scales[:, None] * weight_scales[None, :]
    place = out_ptr + rows[:, None] * num_outputs + outputs[None, :]
    tl.store(place, out.to(out_ptr.dtype.element_ty), mask=is_row[:, None] & is_output[None, :])
