"""All layers in one call: the bits of an operation at a time, and where it serves."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.config import EngineConfig
from models.adapters.checkpoint import LoadedAdapter, LoraPair
from models.adapters.targets import module_sizes
from models.decoder import Decoder
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import StepInputs
from models.engine.step_interrupt import InterruptibleAttention, StepInterrupt, StepInterrupted
from models.native import library
from models.native.layers import PARTS, NativeLayers
from models.native.matmul import are_float_products_fast
from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import StepDriver, random_tokens, reference_logprobs

WIDE = {"head_dim": 32, "max_position_embeddings": 4096}
BIASES = {"attention_bias": True, "mlp_bias": True}
CASES = {
    "float32": ("llama", BIASES, "float32", "none"),
    "bfloat16": ("llama", {"tie_word_embeddings": True}, "bfloat16", "none"),
    "biases of queries to values": ("qwen2", {}, "bfloat16", "none"),
    "norms of heads": ("qwen3", {}, "float32", "none"),
    "window": ("mistral", {"sliding_window": 40}, "float32", "none"),
    "windows of some layers": (
        "qwen2",
        {"sliding_window": 40, "use_sliding_window": True, "max_window_layers": 1},
        "bfloat16",
        "none",
    ),
    "int8": ("llama", {}, "bfloat16", "int8"),
    "int8_dynamic": ("llama", {"intermediate_size": 80}, "float32", "int8_dynamic"),
    "int4": ("llama", {}, "bfloat16", "int4_g32"),
    # Neither is a multiple of what the products take at once.
    "odd widths": ("llama", {"hidden_size": 80, "intermediate_size": 112}, "float32", "none"),
}
TOKENS = random_tokens(150, seed=7)


@pytest.fixture(scope="module", autouse=True)
def _kernels() -> None:
    assert library.native_library() is not None, "the kernels build wherever tests run"
    if not are_float_products_fast():
        pytest.skip("products of floats are torch's here, and so is the order of the operations")


def decoder_of(driver: StepDriver) -> Decoder:
    decoder = driver.runner._decoder
    assert isinstance(decoder, Decoder)
    return decoder


def driver_for(folder: Path, dtype: str = "float32", quantization: str = "none") -> StepDriver:
    return StepDriver(folder, block_size=16, dtype=dtype, quantization=quantization)


def logits_of_a_busy_while(
    driver: StepDriver, adapter_slots: tuple[int | None, ...] = (None,) * 3
) -> torch.Tensor:
    """Prompts whole and in chunks, beside sequences that decode; 70 rows in the largest step."""
    first, second, third = (
        driver.add(TOKENS[i:], slot) for i, slot in zip((0, 20, 60), adapter_slots, strict=True)
    )
    driver.step((first, 70))
    driver.step((first, 1), (second, 33))
    driver.step((first, 1), (second, 1), (third, 68))
    for _ in range(3):
        driver.step((first, 1), (second, 1), (third, 1))
    driver.step((second, 5), (third, 1), (first, 2))
    return torch.stack(first.logprobs + second.logprobs + third.logprobs)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_bits_are_those_of_an_operation_at_a_time(
    make_checkpoint: MakeCheckpoint, case: tuple[str, dict[str, object], str, str]
) -> None:
    family, extra, dtype, quantization = case
    folder = make_checkpoint(family, **(WIDE | extra))
    driver = driver_for(folder, dtype, quantization)
    assert decoder_of(driver)._native_layers is not None
    found = logits_of_a_busy_while(driver)
    apart = driver_for(folder, dtype, quantization)
    decoder_of(apart)._native_layers = None
    assert torch.equal(found, logits_of_a_busy_while(apart))


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_it_computes_what_transformers_does(make_checkpoint: MakeCheckpoint, family: str) -> None:
    folder = make_checkpoint(family, **WIDE)
    driver = driver_for(folder)
    sequence = driver.add(TOKENS)
    driver.finish(sequence, 80, 1, 33, 1)
    expected = reference_logprobs(folder, TOKENS)
    torch.testing.assert_close(torch.stack(sequence.logprobs), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("case", ["float32", "bfloat16", "int8", "windows of some layers"])
def test_with_adapters_too(make_checkpoint: MakeCheckpoint, case: str) -> None:
    """Of all modules and of some, for two of three sequences."""
    family, extra, dtype, quantization = CASES[case]
    folder = make_checkpoint(family, **(WIDE | extra))
    found = []
    for is_native in (True, False):
        driver = StepDriver(
            folder,
            dtype=dtype,
            quantization=quantization,
            engine_config=EngineConfig(kv_cache_memory_bytes=32 * 2**20, max_loaded_adapters=3),
        )
        install_adapters(driver)
        assert decoder_of(driver)._native_layers is not None
        if not is_native:
            decoder_of(driver)._native_layers = None
        found.append(logits_of_a_busy_while(driver, adapter_slots=(2, None, 0)))
    assert torch.equal(*found)
    plain = logits_of_a_busy_while(driver_for(folder, dtype, quantization))
    has_changed = (found[0] != plain).any(dim=1)
    assert has_changed[: len(TOKENS) // 3].all()


def install_adapters(driver: StepDriver) -> None:
    """Of all modules, of two of them, and none, in slots 0 to 2."""
    runner = driver.runner
    config = decoder_of(driver).config
    generator = torch.Generator().manual_seed(5)
    targets = (tuple(module_sizes(config)), ("self_attn.v_proj", "mlp.down_proj"))
    for slot, modules in zip((0, 2), targets, strict=True):
        layers = []
        for _ in range(config.num_layers):
            pairs = {}
            for module in modules:
                num_inputs, num_outputs = module_sizes(config)[module]
                pairs[module] = LoraPair(
                    a_RI=(torch.randn(5, num_inputs, generator=generator) / 8).to(runner.dtype),
                    b_RO=torch.randn(5, num_outputs, generator=generator).to(runner.dtype),
                )
            layers.append(pairs)
        adapter = LoadedAdapter(version=b"", layers=tuple(layers))
        for index in range(config.num_layers):
            runner.install_adapter(slot, adapter, index)


def test_long_contexts_are_shared_out_among_threads(make_checkpoint: MakeCheckpoint) -> None:
    folder = make_checkpoint("llama", **WIDE)
    tokens = random_tokens(2500)
    found = []
    for is_native in (True, False):
        driver = driver_for(folder)
        if not is_native:
            decoder_of(driver)._native_layers = None
        sequence = driver.add(tokens)
        driver.finish(sequence, 2490, 1)
        found.append(torch.stack(sequence.logprobs[-10:]))
    assert torch.equal(*found)


def inputs_of(tokens: list[int], *, is_interruptible: bool = False) -> StepInputs:
    return StepInputs(
        token_ids=tokens,
        positions=list(range(len(tokens))),
        slot_mapping=list(range(16, 16 + len(tokens))),
        query_lens=[len(tokens)],
        context_lens=[len(tokens)],
        block_tables=[list(range(1, 2 + len(tokens) // 16))],
        sampling_rows=[],
        is_interruptible=is_interruptible,
    )


def test_it_is_interrupted_before_a_layer_and_goes_on_after_that(
    make_checkpoint: MakeCheckpoint,
) -> None:
    driver = driver_for(make_checkpoint("llama", **WIDE))
    runner, inputs = driver.runner, inputs_of(TOKENS[:40], is_interruptible=True)
    runner.interrupt()
    with pytest.raises(StepInterrupted):
        runner.execute(inputs)
    runner.execute(inputs)  # it is asked for once
    runner.interrupt()
    runner.execute(inputs_of(TOKENS[:40]))  # a step that may not be interrupted


def test_an_interrupt_that_comes_while_it_computes_ends_it(make_checkpoint: MakeCheckpoint) -> None:
    """The layers' own thread is in the kernel, without Python's lock: others run meanwhile."""
    folder = make_checkpoint("llama", **WIDE, num_hidden_layers=200)
    driver = driver_for(folder)
    layers = decoder_of(driver)._native_layers
    assert isinstance(layers, NativeLayers)
    inputs = inputs_of(TOKENS)
    interrupt, has_begun = StepInterrupt(), threading.Event()
    attention = InterruptibleAttention(driver.runner._attention.prepare(inputs), interrupt)
    stopper = threading.Thread(target=lambda: (has_begun.wait(), interrupt.set()))
    stopper.start()
    positions_T = torch.arange(len(TOKENS))

    def run_until_it_ends() -> None:
        while True:
            has_begun.set()
            tokens = layers.begin(torch.randn(len(TOKENS), 64), positions_T, attention)
            assert tokens is not None
            layers.advance(tokens, range(200))

    with pytest.raises(StepInterrupted):
        run_until_it_ends()
    stopper.join()
    interrupt.check()  # and it is not set any more


def test_it_says_where_the_time_went(make_checkpoint: MakeCheckpoint) -> None:
    driver = driver_for(make_checkpoint("llama", **WIDE))
    layers = decoder_of(driver)._native_layers
    assert layers is not None
    attention = driver.runner._attention.prepare(inputs_of(TOKENS[:20]))
    seconds = np.zeros(len(PARTS))
    seconds[PARTS.index("other ranks")] = 1.0  # there are none
    tokens = layers.begin(torch.randn(20, 64), torch.arange(20), attention)
    assert tokens is not None
    layers.advance(tokens, range(1), seconds)
    assert seconds.min() > 0


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("mixtral", {"num_local_experts": 3}),
        ("llama", {"head_dim": 16}),  # which the kernels' attention does not have
    ],
)
def test_other_models_are_computed_an_operation_at_a_time(
    make_checkpoint: MakeCheckpoint, family: str, extra: dict[str, object]
) -> None:
    driver = driver_for(make_checkpoint(family, **(WIDE | extra)))
    assert decoder_of(driver)._native_layers is None


def test_attention_that_is_not_the_kernels_is_left_to_others(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint("llama", **WIDE)
    config = EngineConfig(block_size=4, kv_cache_memory_bytes=2**20)  # too small for the kernels
    driver = StepDriver(folder, engine_config=config)
    assert decoder_of(driver)._native_layers is not None
    sequence = driver.add(TOKENS[:30])
    driver.finish(sequence, 20, 1)
    expected = reference_logprobs(folder, TOKENS[:30])
    torch.testing.assert_close(torch.stack(sequence.logprobs), expected, atol=1e-3, rtol=1e-4)


def test_without_kernels_there_is_none(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("llama", **WIDE)
    monkeypatch.setenv(library.SWITCH, "0")
    library.native_library.cache_clear()
    try:
        runner = ModelRunner(folder, EngineConfig(kv_cache_memory_bytes=2**20), device="cpu")
    finally:
        monkeypatch.undo()
        library.native_library.cache_clear()
    assert isinstance(runner._decoder, Decoder)
    assert runner._decoder._native_layers is None
