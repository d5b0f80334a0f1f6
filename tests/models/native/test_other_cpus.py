"""The kernels as compiled for CPUs without the latest instructions; they run on this one."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from cluster.config import EngineConfig
from models.attention.native import NativeAttention
from models.decoder import Decoder
from models.engine.model_runner import ModelRunner
from models.native.adapters import native_adapters
from models.native.library import SWITCH, native_library
from tests.models.conftest import MakeCheckpoint
from tests.models.native.test_adapters import (
    DTYPES,
    SHAPES,
    assert_invariant,
    assert_right,
    linears,
)
from tests.models.native.test_layers import decoder_of, driver_for, logits_of_a_busy_while

#: Names of GCC and clang, each with flags of /proc/cpuinfo that it needs.
CPUS = {
    "x86-64-v3": {"avx2", "fma", "f16c", "bmi2"},
    "skylake-avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl"},
    "cooperlake": {"avx512f", "avx512_vnni", "avx512_bf16"},
}
#: Logprobs of bfloat16 differ by a tenth between any two orders of its sums.
CASES = {
    "float32": ("float32", "none", 1e-4),
    "bfloat16": ("bfloat16", "none", 0.3),
    "int8": ("bfloat16", "int8", 0.3),
    "int8_dynamic": ("float32", "int8_dynamic", 1e-4),
    "int4": ("bfloat16", "int4_g32", 0.3),
}


def cpu_flags() -> set[str]:
    text = Path("/proc/cpuinfo").read_text()
    return {flag for line in text.splitlines() if "flags" in line for flag in line.split()}


@pytest.fixture(params=CPUS)
def _for_another_cpu(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    if not CPUS[request.param] <= cpu_flags():
        pytest.skip(f"this machine cannot run what is compiled for {request.param}")
    monkeypatch.setenv(SWITCH, request.param)
    native_library.cache_clear()
    yield
    native_library.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("_for_another_cpu")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_they_compute_what_torch_does(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch, case: tuple[str, str, float]
) -> None:
    dtype, quantization, tolerance = case
    folder = make_checkpoint("llama", head_dim=32, max_position_embeddings=4096)
    driver = driver_for(folder, dtype, quantization)
    # Without AVX-512, products of floats are torch's, which are faster there.
    has_layers = quantization != "none" or "avx512f" in CPUS[os.environ[SWITCH]]
    assert (decoder_of(driver)._native_layers is not None) == has_layers
    assert isinstance(driver.runner._attention, NativeAttention)
    found = logits_of_a_busy_while(driver)
    monkeypatch.setenv(SWITCH, "0")
    native_library.cache_clear()
    plain = driver_for(folder, dtype, quantization)
    assert decoder_of(plain)._native_layers is None
    expected = logits_of_a_busy_while(plain)
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.slow
@pytest.mark.usefixtures("_for_another_cpu")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES.values(), ids=DTYPES.keys())
def test_adapters_add_what_they_should(shape: str, dtype: torch.dtype, tolerance: float) -> None:
    assert_right(shape, dtype, tolerance)
    assert_invariant(shape, dtype)
    sizes = {"num_layers": 1, "num_slots": 1, "rank": 4}
    chosen = native_adapters(
        linears(16, (16,)), **sizes, dtype=dtype, device="cpu", is_invariant=False
    )
    # Without AVX-512 torch's are faster.
    assert (chosen is not None) == ("avx512f" in CPUS[os.environ[SWITCH]])


@pytest.mark.slow
@pytest.mark.usefixtures("_for_another_cpu")
def test_a_deterministic_engine_has_products_of_ours(make_checkpoint: MakeCheckpoint) -> None:
    config = EngineConfig(max_model_len=64, deterministic=True)
    folder = make_checkpoint("llama", head_dim=32)
    decoder = ModelRunner(folder, config, dtype="float32", device="cpu")._decoder
    assert isinstance(decoder, Decoder)
    assert decoder._native_layers is not None
