"""Chunks of long prompts that pass a few layers in each step of streams."""

import contextlib
import itertools
from pathlib import Path

import pytest
from msgspec.structs import replace

from cluster.types import PRIORITY_BATCH, Request, SamplingParams
from models.adapters import bank
from models.engine.adapter_slots import AdapterSlots
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.engine.prompt_share import PromptShare
from models.engine.step_inputs import LayerInputs
from models.parallel.runner import TPRunner
from tests.models.adapters.adapter_samples import make_adapter, merged_checkpoint
from tests.models.conftest import MakeCheckpoint
from tests.models.engine.kv_simulator import KVSimulator
from tests.models.engine.test_scheduler import expected_output, make_request
from tests.models.engine.test_scheduler import make_engine as make_simulated_engine
from tests.models.engine_runs import (
    Outputs,
    assert_same_bits,
    greedy,
    make_engine,
    prompts_of_mixed_lengths,
    reference_outputs,
    run,
    tokens,
)
from tests.models.parallel.rank_threads import engine_config, engine_on, parallel_runner

NUM_LAYERS = 3
LONG = list(range(21, 81))


@pytest.fixture(autouse=True)
def _a_layer_in_each_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the steps take."""
    allow(monkeypatch, 1.0)


def allow(monkeypatch: pytest.MonkeyPatch, num_tokens: float) -> None:
    """Steps of streams have so many tokens of long prompts, those in some layers in proportion."""
    monkeypatch.setattr(PromptShare, "num_tokens", lambda self: num_tokens)


def with_a_stream(**limits: object) -> tuple[Engine, KVSimulator]:
    """An engine in which a stream decodes."""
    engine, runner = make_simulated_engine(
        max_prompt_slowdown=0.5,
        num_layers_apart=NUM_LAYERS,
        **limits,  # type: ignore[arg-type]
    )
    engine.add_request(make_request("stream", [3, 4], max_tokens=110, ignore_eos=True))
    engine.step()
    return engine, runner


def layers_of_steps(runner: KVSimulator, monkeypatch: pytest.MonkeyPatch) -> list[LayerInputs]:
    """The slices that the runner is going to compute."""
    found: list[LayerInputs] = []
    passes = runner.pass_layers

    def noted(layers: LayerInputs) -> None:
        found.append(layers)
        passes(layers)

    monkeypatch.setattr(runner, "pass_layers", noted)
    return found


def step_until_a_chunk_is_under_way(engine: Engine, runner: KVSimulator) -> None:
    while runner.num_passed == 0:
        engine.step()
    assert runner.num_passed < NUM_LAYERS


def outputs_of(engine: Engine) -> dict[str, list[int]]:
    """Until nothing is left; the runner refuses to read keys and values that are not complete."""
    found: dict[str, list[int]] = {}
    while engine.has_unfinished:
        for delta in engine.step():
            found.setdefault(delta.request_id, []).extend(delta.token_ids)
        engine.check()
    return found


def test_a_chunk_passes_one_layer_after_the_other_and_the_stream_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine, runner = with_a_stream()
    slices = layers_of_steps(runner, monkeypatch)
    engine.add_request(make_request("long", LONG, max_tokens=3, ignore_eos=True))
    told = {"stream"}
    while told == {"stream"}:
        told = {delta.request_id for delta in engine.step()}
        engine.check()
    assert told == {"stream", "long"}
    assert runner.num_chunks_apart == 4  # of 16 tokens, and what is left but for the last token
    assert [one.first_layer for one in slices] == [*range(NUM_LAYERS)] * 4
    assert all(one.stop_layer == one.first_layer + 1 for one in slices)
    sizes = [len(one.chunk.token_ids) for one in slices]
    assert sizes == [16] * 9 + [len(LONG) - 1 - 2 - 48] * 3  # it was admitted with 2
    rest = outputs_of(engine)["long"]
    assert rest == expected_output(LONG, 3)[1:]


def test_a_step_that_has_more_time_takes_more_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = with_a_stream()
    allow(monkeypatch, 11.0)
    slices = layers_of_steps(runner, monkeypatch)
    engine.add_request(make_request("long", LONG, max_tokens=2, ignore_eos=True))
    assert outputs_of(engine)["long"] == expected_output(LONG, 2)
    passed = [(one.first_layer, one.stop_layer) for one in slices]
    assert passed == [(0, 2), (2, 3)] * 3  # 16 tokens in two of three layers are 10.7


def test_nobody_finds_blocks_cached_that_have_not_passed_all_layers() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("first", LONG, max_tokens=4, ignore_eos=True))
    for number in range(12):
        engine.add_request(make_request(f"again {number}", LONG, max_tokens=4, ignore_eos=True))
        engine.step()
    found = outputs_of(engine)
    assert all(found[name] == expected_output(LONG, 4) for name in found if name != "stream")
    assert runner.num_chunks_apart > 0


def test_what_has_passed_all_layers_is_found_cached_before_the_prompt_is_read() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("first", LONG, max_tokens=1))
    while runner.num_chunks_apart < 2:
        engine.step()
    engine.add_request(make_request("again", [*LONG[:34], 1], max_tokens=1))
    (delta,) = [delta for delta in engine.step() if delta.request_id == "again"]
    assert delta.num_cached_tokens == 32, "of the 34 that were read"


def test_without_streams_the_rest_is_read_in_whole_steps() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("long", LONG, max_tokens=3, ignore_eos=True))
    step_until_a_chunk_is_under_way(engine, runner)
    engine.abort_request("stream")
    assert outputs_of(engine) == {"long": expected_output(LONG, 3)}
    assert runner.num_chunks_apart == 0


def test_a_chunk_that_was_read_in_whole_steps_meanwhile_does_not_go_on() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("long", LONG, max_tokens=3, ignore_eos=True))
    step_until_a_chunk_is_under_way(engine, runner)
    engine.abort_request("stream")
    engine.step()
    another = make_request("another", [9], priority=-1, max_tokens=100, ignore_eos=True)
    engine.add_request(another)  # more important: it is a stream before the prompt is read
    assert outputs_of(engine)["long"] == expected_output(LONG, 3)
    assert runner.num_chunks_apart > 0


def test_a_prompt_that_is_given_up_midway_leaves_nothing_behind() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("gone", LONG, max_tokens=3))
    step_until_a_chunk_is_under_way(engine, runner)
    free_before = engine.stats().num_free_blocks
    engine.abort_request("gone")
    engine.check()
    assert engine.stats().num_free_blocks > free_before
    engine.add_request(make_request("next", LONG[::-1], max_tokens=1))
    told = {"stream"}
    while told == {"stream"}:
        told = {delta.request_id for delta in engine.step()}
    assert told == {"stream", "next"}, "it is read while the stream goes on"


def test_a_prompt_that_is_preempted_midway_begins_again_and_is_read() -> None:
    engine, runner = with_a_stream(num_blocks=32, budget=64)
    longer = LONG + LONG[:30]
    engine.add_request(make_request("long", longer, priority=5, max_tokens=3, ignore_eos=True))
    step_until_a_chunk_is_under_way(engine, runner)
    for number in range(2):  # each fits a step, and together they need the long one's blocks
        engine.add_request(make_request(str(number), [number] * 50, max_tokens=12))
    first = [delta for _ in range(2) for delta in engine.step()]
    assert engine.stats().preemptions_total == 1
    assert 0 < runner.num_passed < NUM_LAYERS, "of the chunk that is no more"
    assert runner.num_chunks_apart == 0
    found = outputs_of(engine)
    assert found["long"] == expected_output(longer, 3)
    for number in range(2):
        begun = [token for one in first if one.request_id == str(number) for token in one.token_ids]
        assert begun + found[str(number)] == expected_output([number] * 50, 12)
    assert runner.num_chunks_apart > 0


def test_several_long_prompts_are_read_chunk_by_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    engine, runner = with_a_stream(num_blocks=200)
    allow(monkeypatch, 9.0)  # after a layer of a chunk, something is left
    slices = layers_of_steps(runner, monkeypatch)
    prompts = {f"long {k}": [k, *LONG] for k in range(3)}
    for name, prompt in prompts.items():
        tenant = "other" if name == "long 1" else ""
        engine.add_request(make_request(name, prompt, tenant=tenant, max_tokens=3))
    found = outputs_of(engine)
    for name, prompt in prompts.items():
        assert found[name] == expected_output(prompt, 3)
    chunks = [list(group) for _, group in itertools.groupby(slices, key=lambda one: id(one.chunk))]
    assert len(chunks) == runner.num_chunks_apart > 3
    for passed in chunks:
        assert passed[0].first_layer == 0
        assert passed[-1].stop_layer == NUM_LAYERS, "none is left out"


@pytest.mark.parametrize("num_blocks", range(32, 44))
def test_a_prompt_whose_chunk_is_in_the_step_is_not_preempted_for_another(
    monkeypatch: pytest.MonkeyPatch, num_blocks: int
) -> None:
    """Of two tenants, the one that came later is served first, as it has had less; then the other
    one's prompt, which passes all layers at once, needs blocks."""
    engine, _ = with_a_stream(num_blocks=num_blocks)
    allow(monkeypatch, 9.0)
    for number in range(5):
        engine.add_request(make_request(str(number), [number] * 9, max_tokens=60, ignore_eos=True))
    prompts = {"scored": LONG, "long": LONG[::-1]}
    for name, prompt in prompts.items():
        logprobs = 1 if name == "scored" else None
        engine.add_request(
            make_request(name, prompt, tenant=name, max_tokens=3, prompt_logprobs=logprobs)
        )
        for _ in range(4):
            engine.step()
    found = outputs_of(engine)
    for name, prompt in prompts.items():
        assert found[name] == expected_output(prompt, 3)


def test_batch_prompts_take_whole_steps_of_their_own_share() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("batch", LONG, priority=PRIORITY_BATCH, max_tokens=3))
    assert outputs_of(engine)["batch"] == expected_output(LONG, 3)
    assert runner.num_chunks_apart == 0


# -- real models -----------------------------------------------------------------------------------

FAMILIES = {
    "llama": ("llama", {}),
    "llama kernels": ("llama", {"head_dim": 32}),
    "mistral": ("mistral", {"sliding_window": 24}),
    "mistral kernels": ("mistral", {"sliding_window": 24, "head_dim": 32}),
    "qwen2": ("qwen2", {}),
    "qwen3 kernels": ("qwen3", {"head_dim": 32}),
    "mixtral": ("mixtral", {}),
    "mixtral kernels": ("mixtral", {"head_dim": 32}),
}


def streams() -> list[Request]:
    """Two that go on for long."""
    params = SamplingParams(temperature=0.0, max_tokens=240, ignore_eos=True)
    return [
        Request(request_id=f"stream {k}", prompt_token_ids=[5 + k], sampling_params=params)
        for k in range(2)
    ]


def beside_streams(
    engine: Engine, before: list[Request], late: list[Request]
) -> tuple[Outputs, list[LayerInputs]]:
    """All deltas of requests that decode and of those that come then, and the slices there were."""
    slices: list[LayerInputs] = []
    runner = engine._runner
    if isinstance(runner, TPRunner):
        runner = runner._runner
    assert isinstance(runner, ModelRunner)
    chunk_layers = runner._chunk_layers
    assert chunk_layers is not None
    compute = chunk_layers.compute

    def noted(layers: LayerInputs) -> None:
        slices.append(layers)
        compute(layers)

    chunk_layers.compute = noted  # type: ignore[method-assign]
    deltas: Outputs = {}
    for request in before:
        engine.add_request(request)
    while engine.has_unfinished:
        for delta in engine.step():
            deltas.setdefault((delta.request_id, delta.index), []).append(delta)
        engine.check()
        if late and len(deltas) == len(before):
            for request in late:
                engine.add_request(request)
            late = []
    return deltas, slices


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_equal_transformers(family: str, make_checkpoint: MakeCheckpoint) -> None:
    name, overrides = FAMILIES[family]
    folder = make_checkpoint(name, **overrides, num_hidden_layers=5)
    prompts = [prompt for prompt in prompts_of_mixed_lengths() if len(prompt) > 32]
    expected = reference_outputs(folder, prompts)
    engine = make_engine(
        folder, max_num_batched_tokens=32, max_num_seqs=24, max_prompt_slowdown=0.5
    )
    deltas, slices = beside_streams(engine, streams(), greedy(prompts))
    assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected
    assert {one.first_layer for one in slices} == set(range(5))


@pytest.mark.parametrize(("family", "size"), [("llama", 4), ("mistral kernels", 2), ("mixtral", 2)])
def test_ranks_let_chunks_pass_layer_by_layer_too(
    make_checkpoint: MakeCheckpoint, family: str, size: int
) -> None:
    name, overrides = FAMILIES[family]
    folder = make_checkpoint(name, **overrides, num_hidden_layers=5)
    prompts = [prompt for prompt in prompts_of_mixed_lengths() if len(prompt) > 48]
    expected = reference_outputs(folder, prompts)
    limits = {"max_num_batched_tokens": 48, "max_prompt_slowdown": 0.5}
    with parallel_runner(folder, size, **limits) as runner:
        engine = engine_on(runner, **limits)
        deltas, slices = beside_streams(engine, streams(), greedy(prompts))
    assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected
    assert {one.first_layer for one in slices} == set(range(5))


@pytest.mark.parametrize("way", ["an operation at a time", "in one call", "by torch", "on ranks"])
def test_prompts_with_adapters_pass_layer_by_layer_too(
    way: str,
    make_checkpoint: MakeCheckpoint,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if way == "by torch":
        monkeypatch.setattr(bank, "native_adapters", lambda *_, **__: None)
    wide = {} if way == "an operation at a time" else {"head_dim": 32}
    folder = make_checkpoint("llama", **wide, num_hidden_layers=5)
    adapter = make_adapter(tmp_path / "adapter", folder, seed=1)
    prompts = [prompt for prompt in prompts_of_mixed_lengths() if len(prompt) > 32]
    expected = reference_outputs(merged_checkpoint(tmp_path / "merged", folder, adapter), prompts)
    limits = {"max_num_batched_tokens": 32, "max_num_seqs": 24, "max_prompt_slowdown": 0.5}
    limits |= {"max_loaded_adapters": 2}
    late = [replace(request, adapter="it") for request in greedy(prompts)]
    with contextlib.ExitStack() as stack:
        runner: ModelRunner | TPRunner
        if way == "on ranks":
            runner = stack.enter_context(parallel_runner(folder, 2, **limits))
        else:
            runner = ModelRunner(folder, engine_config(**limits), dtype="float32")
        slots = AdapterSlots(runner, lambda _: adapter)
        engine = Engine(runner, engine_config(**limits), adapters=slots)
        deltas, slices = beside_streams(engine, streams(), late)
    assert [tokens(deltas[(str(k), 0)]) for k in range(len(prompts))] == expected
    assert {one.first_layer for one in slices} == set(range(5))
    assert all(one.chunk.adapter_slots == [0] for one in slices)


def test_a_prompt_whose_logprobs_are_wanted_passes_all_layers_at_once(
    make_checkpoint: MakeCheckpoint,
) -> None:
    folder = make_checkpoint("llama", num_hidden_layers=3)
    (prompt,) = (prompt for prompt in prompts_of_mixed_lengths() if len(prompt) == 80)
    (alone,) = greedy([prompt], prompt_logprobs=2, max_tokens=2)
    engine = make_engine(
        folder, max_num_batched_tokens=32, max_num_seqs=24, max_prompt_slowdown=0.5
    )
    late = Request(
        request_id="late", prompt_token_ids=prompt, sampling_params=alone.sampling_params
    )
    deltas, slices = beside_streams(engine, streams(), [late])
    scored = deltas[("late", 0)][0].prompt_logprobs
    assert scored is not None
    assert len(scored) == len(prompt) - 1
    assert not slices


@pytest.mark.parametrize(
    ("dtype", "quantization"),
    [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "int8"), ("float32", "int8_dynamic")],
)
def test_a_deterministic_engine_gives_the_same_bits_to_what_passes_layer_by_layer(
    make_checkpoint: MakeCheckpoint, dtype: str, quantization: str
) -> None:
    folder = make_checkpoint("llama", head_dim=32, num_hidden_layers=5)
    limits = engine_config(deterministic=True, max_num_batched_tokens=48, max_prompt_slowdown=0.5)
    prompts = [prompt for prompt in prompts_of_mixed_lengths() if len(prompt) > 48]
    requests = greedy(prompts, logprobs=3)

    def engine() -> Engine:
        runner = ModelRunner(folder, limits, dtype=dtype, device="cpu", quantization=quantization)
        return Engine(runner, limits)

    alone = engine()
    expected = {key: d for request in requests for key, d in run(alone, [request]).items()}
    deltas, slices = beside_streams(engine(), streams(), requests)
    assert slices
    assert_same_bits({key: deltas[key] for key in expected}, expected)
