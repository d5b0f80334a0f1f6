"""Timers see every part of a step, change nothing of it, and leave nothing behind."""

from pathlib import Path

import pytest
import torch

from models.engine import engine as engine_module
from scripts.bench.checkpoints import shape_folder
from scripts.bench.engine_measure import LoadedEngine, Setup
from scripts.bench.engine_workloads import WORKLOADS
from scripts.bench.step_parts import PARTS, Stopwatch, step_timers


@pytest.fixture
def loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoadedEngine:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    setup = Setup(
        folder=shape_folder("tiny", "float32"),
        dtype="float32",
        quantization="none",
        device=torch.device("cpu"),
        repeat=1,
        is_quick=True,
    )
    return LoadedEngine(setup, WORKLOADS["mixed"].shortened(), 6)


def tokens(loaded: LoadedEngine) -> dict[str, list[int]]:
    """Of all requests, by their ids."""
    found: dict[str, list[int]] = {}
    for request in WORKLOADS["mixed"].shortened().requests(6, loaded.engine.vocab_size, 0):
        loaded.engine.add_request(request)
    while loaded.engine.has_unfinished:
        for delta in loaded.engine.step():
            found.setdefault(delta.request_id, []).extend(delta.token_ids)
    return found


def test_tokens_are_the_same_with_timers_and_every_part_is_timed(loaded: LoadedEngine) -> None:
    plain = tokens(loaded)
    with step_timers(loaded.engine, loaded.runner) as timers:
        assert tokens(loaded) == plain
        seconds = timers.take()
        assert list(seconds) == list(PARTS)
        assert min(seconds.values()) > 0
        assert timers.inputs is not None
        assert len(timers.inputs.query_lens) == 6
        assert not any(timers.take().values()), "what was taken is gone"


def test_nothing_is_left_of_the_timers(loaded: LoadedEngine) -> None:
    runner, decoder = loaded.runner, loaded.runner._decoder
    layer = decoder.layers[0]  # type: ignore[attr-defined]
    holders = (loaded.engine, runner, decoder, layer, loaded.engine._scheduler, runner._sampler)
    before = [dict(vars(holder)) for holder in holders]
    build = engine_module.build_step_inputs
    with step_timers(loaded.engine, runner):
        assert engine_module.build_step_inputs is not build
        assert "step" in vars(loaded.engine)
    assert engine_module.build_step_inputs is build
    assert [dict(vars(holder)) for holder in holders] == before


def test_a_parts_time_is_without_what_runs_inside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr("scripts.bench.step_parts.time.perf_counter", lambda: now_s[0])
    watch = Stopwatch(lambda: None)

    def passing(seconds: float) -> None:
        now_s[0] += seconds

    inner = watch.timed("inner", passing)

    def outer() -> None:
        passing(1)
        inner(10)
        passing(2)
        inner(20)

    watch.timed("outer", outer)()
    assert watch.seconds == {"inner": 30, "outer": 3}


def test_a_part_that_fails_is_timed_too() -> None:
    watch = Stopwatch(lambda: None)

    def fail() -> None:
        raise ValueError("it fails")

    with pytest.raises(ValueError, match="it fails"):
        watch.timed("outer", watch.timed("inner", fail))()
    assert set(watch.seconds) == {"inner", "outer"}
    assert watch._inner_s == []
