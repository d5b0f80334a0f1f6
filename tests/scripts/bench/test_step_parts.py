"""Timers see every part of a step, change nothing of it, and leave nothing behind."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.config import EngineConfig
from models.engine import engine as engine_module
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from scripts.bench.checkpoints import shape_folder
from scripts.bench.engine_workloads import WORKLOADS
from scripts.bench.step_parts import PARTS, Stopwatch, step_timers


@dataclass(frozen=True, slots=True)
class Loaded:
    engine: Engine
    runner: ModelRunner


@pytest.fixture(params=[False, True], ids=["in turn", "overlapped"])
def loaded(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Loaded:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    config = EngineConfig(
        max_model_len=256, kv_cache_memory_bytes=2**24, overlap_steps=request.param
    )
    runner = ModelRunner(shape_folder("tiny", "float32"), config, device="cpu", random_weights=True)
    return Loaded(Engine(runner, config), runner)


def add(loaded: Loaded, name: str) -> None:
    for request in WORKLOADS[name].shortened().requests(6, loaded.engine.vocab_size, 0):
        loaded.engine.add_request(request)


def finish(loaded: Loaded, *, num_steps: int | None = None) -> list[tuple[str, int]]:
    """Every token of these steps, or of all that are left, by its request's id."""
    found = []
    while loaded.engine.has_unfinished and num_steps != 0:
        for delta in loaded.engine.step():
            found += [(delta.request_id, token_id) for token_id in delta.token_ids]
        num_steps = None if num_steps is None else num_steps - 1
    return found


@pytest.mark.parametrize("name", ["short", "mixed"])
def test_tokens_are_the_same_with_timers_and_every_part_is_timed(loaded: Loaded, name: str) -> None:
    add(loaded, name)
    plain = finish(loaded)
    add(loaded, name)
    found = finish(loaded, num_steps=3)
    with step_timers(loaded.engine, loaded.runner) as timers:
        found += finish(loaded, num_steps=3)
        seconds = timers.take()
        assert list(seconds) == list(PARTS)
        assert min(seconds.values()) > 0
        assert timers.inputs is not None
        assert len(timers.inputs.query_lens) == 6
        assert not any(timers.take().values()), "what was taken is gone"
    assert sorted(found + finish(loaded)) == sorted(plain)


def test_nothing_is_left_of_the_timers(loaded: Loaded) -> None:
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
