"""Compiles whatever the backend, the operations and the sampler would launch, for a GPU that need
not be here: `python -m tests.models.triton.kernel_compiler`.

Prints a line for each kernel. Launches are caught and compiled with the very arguments that they
have, as Triton itself would specialise them.
"""

import os

os.environ.pop("TRITON_INTERPRET", None)

from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import ASTSource
from triton.runtime.jit import JITFunction

from models.attention.triton import TritonAttention
from models.checkpoint import RopeConfig
from models.engine.kv_cache import KVCache
from models.engine.step_inputs import StepInputs
from models.layers import Rope
from models.operations import HeadNorms
from models.triton.matmul import multiply_fp8
from models.triton.operations import TritonOperations, quantize_tokens_fp8
from models.triton.sampling import choose_tokens

HOPPER = GPUTarget("cuda", 90, 32)
POINTERS = {
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float8_e4m3fn: "*fp8e4nv",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
seen: set[str] = set()


def compile_launch(kernel: Any, *args: Any, grid: object, warmup: bool, **kwargs: Any) -> None:
    names = kernel.arg_names
    options = {name: value for name, value in kwargs.items() if name not in names}
    values = dict(zip(names, args, strict=False)) | {n: kwargs[n] for n in names if n in kwargs}
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(kernel.params):
        value = values[parameter.name]
        is_one = isinstance(value, int) and value == 1 and not parameter.do_not_specialize
        is_aligned = not parameter.do_not_specialize_on_alignment
        if parameter.is_constexpr or is_one:
            signature[parameter.name], constants[(index,)] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = POINTERS[value.dtype]
            if is_aligned:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if isinstance(value, int) else "fp32"
            can_specialize = is_aligned and not parameter.do_not_specialize
            if can_specialize and isinstance(value, int) and value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
    name = f"{kernel.__name__} {signature} {constants} {options}"
    if name in seen:
        return
    seen.add(name)
    source = ASTSource(kernel, signature, constexprs=constants, attrs=attributes)
    compiled = triton.compile(source, target=HOPPER, options=options)
    ptx = compiled.asm["ptx"]
    print(
        f"{kernel.__name__}: {len(compiled.asm['cubin']):,} bytes, shared memory "
        f"{compiled.metadata.shared:,} bytes, asynchronous copies {ptx.count('cp.async.c')}, "
        f"stores to local memory {ptx.count('st.local')}",
        flush=True,
    )


def attend(dtype: torch.dtype, cache_dtype: torch.dtype, head_dim: int, window: int | None) -> None:
    num_heads, num_kv_heads, block_size = 8, 2, 16
    cache = KVCache(torch.zeros(1, 8, 2, num_kv_heads, block_size, head_dim).to(cache_dtype))
    backend = TritonAttention(
        cache, num_heads=num_heads, layer_windows=(window,), max_num_seqs=4, max_model_len=512
    )
    backend._num_processors = 132
    inputs = StepInputs(
        token_ids=[0] * 5,
        positions=[0, 0, 1, 2, 3],
        slot_mapping=[0, 16, 17, 18, 19],
        query_lens=[1, 4],
        context_lens=[1, 4],
        block_tables=[[0], [1]],
        sampling_rows=[],
    )
    heads = torch.zeros(5, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype)
    q, k, v = heads.split_with_sizes((num_heads, num_kv_heads, num_kv_heads), dim=1)
    step = backend.prepare(inputs)
    for num_splits in (1, 32):
        step._num_splits = num_splits
        step.attend(q, k, v, layer_index=0)


def operate(dtype: torch.dtype) -> None:
    operations = TritonOperations()
    x_TM = torch.zeros(2, 4096, dtype=dtype)
    for added in (None, x_TM):
        operations.add_rms_norm(x_TM, added, x_TM[0], 1e-5)
    operations.silu_mul(x_TM)
    quantize_tokens_fp8(x_TM)
    rope = Rope(
        RopeConfig(theta=1e4, scaling=None),
        head_dim=128,
        num_positions=8,
        dtype=dtype,
        device="cpu",
    )
    positions = torch.zeros(2, dtype=torch.int32)
    qk_TND = x_TM.view(2, 32, 128)[:, :10]
    for norms in (None, HeadNorms(query_D=x_TM[0], key_D=x_TM[0], eps=1e-5)):
        operations.rotation(rope, positions, num_heads=8)(qk_TND, norms)


def multiply() -> None:
    for num_tokens, num_outputs in ((1, 4096), (64, 57344)):
        weight_OI = torch.zeros(num_outputs, 1024).to(torch.float8_e4m3fn)
        scales = torch.zeros(num_outputs)
        multiply_fp8(
            weight_OI[:num_tokens], scales[:num_tokens], weight_OI, scales, dtype=torch.bfloat16
        )


def sample(dtype: torch.dtype) -> None:
    for is_ranked in (False, True):
        choose_tokens(
            torch.zeros(2, 128256, dtype=dtype),
            torch.zeros(5, 2, dtype=torch.float64),
            is_ranked=is_ranked,
        )


def main() -> None:
    JITFunction.run = compile_launch
    for dtype in (torch.bfloat16, torch.float32):
        operate(dtype)
        sample(dtype)
    multiply()
    attend(torch.bfloat16, torch.bfloat16, 128, None)
    attend(torch.float16, torch.float16, 80, 64)
    attend(torch.bfloat16, torch.float8_e4m3fn, 128, None)
    attend(torch.bfloat16, torch.bfloat16, 256, None)
    attend(torch.float32, torch.float32, 64, None)


if __name__ == "__main__":
    main()
