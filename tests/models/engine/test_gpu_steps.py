"""Steps as a GPU computes them, by Triton's interpreter, with graphs that are played by a function:
padding, static buffers and block tables are the real ones."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams
from models.engine import model_runner
from models.engine.cuda_graphs import graph_sizes
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from tests.models.conftest import MakeCheckpoint

pytest.importorskip("triton")

CONFIG = EngineConfig(max_model_len=64, kv_cache_memory_bytes=2**18, block_size=4, max_num_seqs=4)


class Rerunner:
    """A `Recorder` whose graphs are the work itself."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return work


@pytest.fixture(params=["graphs", "kernel by kernel"])
def as_on_a_gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Rerunner() if request.param == "graphs" else None
    monkeypatch.setattr(model_runner, "runs_triton", lambda device: True)
    monkeypatch.setattr(model_runner, "make_recorder", lambda: recorder)


def generate(folder: Path, config: EngineConfig, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy and seeded outputs; the last prompt arrives when the others are on their way."""
    engine = Engine(ModelRunner(folder, config, device="cpu"), config)
    outputs: dict[str, list[int]] = {str(index): [] for index in range(len(prompts))}
    for index, prompt in enumerate(prompts):
        temperature = 0.0 if index % 2 == 0 else 0.8
        params = SamplingParams(
            temperature=temperature, seed=index, max_tokens=4 + index, ignore_eos=True
        )
        if index == len(prompts) - 1:
            for _ in range(3):
                _take(engine, outputs)
        engine.add_request(
            Request(request_id=str(index), prompt_token_ids=prompt, sampling_params=params)
        )
    while engine.has_unfinished:
        _take(engine, outputs)
        engine.check()
    engine.close()
    return list(outputs.values())


def _take(engine: Engine, outputs: dict[str, list[int]]) -> None:
    for delta in engine.step():
        outputs[delta.request_id] += delta.token_ids


PROMPTS = [[5, 6, 7, 8, 9], [11], [5, 6, 7]]
# As small as it can be: the interpreter takes milliseconds for each program of each kernel.
SHAPE = {
    "num_hidden_layers": 1,
    "vocab_size": 64,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.mark.usefixtures("as_on_a_gpu")
def test_tokens_are_those_of_the_cpu_path(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_checkpoint("qwen3", **SHAPE)
    ours = generate(folder, CONFIG, PROMPTS)
    monkeypatch.setattr(model_runner, "runs_triton", lambda device: False)
    assert ours == generate(folder, CONFIG, PROMPTS)
    assert [len(tokens) for tokens in ours] == [4, 5, 6]


def test_padding_neither_writes_nor_reads(
    make_checkpoint: MakeCheckpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three sequences in a graph for four: whatever the caches hold beside theirs stays."""
    monkeypatch.setattr(model_runner, "runs_triton", lambda device: True)
    monkeypatch.setattr(model_runner, "make_recorder", Rerunner)
    folder = make_checkpoint("llama", **SHAPE)
    runner = ModelRunner(folder, CONFIG, device="cpu")
    engine = Engine(runner, CONFIG)
    runner._kv_cache.tensor_YB2KSD.fill_(float("nan"))
    prompts = PROMPTS[:3]
    for index, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=3, ignore_eos=True)
        engine.add_request(
            Request(request_id=str(index), prompt_token_ids=prompt, sampling_params=params)
        )
    num_written = sum(len(prompt) + 2 for prompt in prompts)  # the last token's are never computed
    while engine.has_unfinished:
        engine.step()
    is_written = ~runner._kv_cache.tensor_YB2KSD.isnan()
    assert int(is_written.sum()) == num_written * 2 * 16
    engine.close()


def test_graph_sizes_end_with_the_most_sequences_and_waste_little() -> None:
    assert graph_sizes(6, 512) == [1, 2, 4, 6]
    assert graph_sizes(1, 512) == [1]
    sizes = graph_sizes(1000, 512)
    assert sizes[-1] == 512
    assert sizes == sorted(set(sizes))
    for num_sequences in range(65, 513):
        size = next(size for size in sizes if size >= num_sequences)
        assert size - num_sequences < 32
