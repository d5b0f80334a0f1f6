"""Who gets a slot, when, and what happens to those whose adapter cannot be read."""

import threading
from concurrent.futures import wait
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.config import EngineConfig
from cluster.errors import BadRequestError, InternalError, ServingError
from cluster.types import PRIORITY_BATCH, BeamParams, Request, SamplingParams, TokenDelta
from models.adapters.checkpoint import LoadedAdapter, LoraPair
from models.engine.adapter_slots import AdapterSlots
from models.engine.async_engine import AsyncEngine
from models.engine.engine import Engine
from models.engine.step_inputs import StepInputs, StepOutputs
from tests.models.engine.kv_simulator import KVSimulator

NUM_LAYERS = 3


class SlotSimulator(KVSimulator):
    """Also satisfies `AdapterHost`: an adapter is its folder's name, and every step checks that
    each sequence's slot holds its adapter whole. A gate may hold back what is read."""

    def __init__(self, num_slots: int, **sizes: int) -> None:
        super().__init__(**({"num_blocks": 64, "block_size": 4, "max_model_len": 128} | sizes))
        self.num_adapter_slots = num_slots
        self.slots = [[""] * NUM_LAYERS for _ in range(num_slots)]
        self.read: list[str] = []
        self.installed: list[tuple[int, str]] = []  # whole ones
        self.gates: dict[str, threading.Event] = {}
        self.errors: dict[str, Exception] = {}
        self.names: dict[int, str] = {}  # of the adapters, by the prompt's first token
        self.num_bytes_per_layer = 8
        self.most_installed_layers = 0  # in one step
        self._num_installed_layers = 0

    def read_adapter(self, folder: Path) -> LoadedAdapter:
        name = folder.name
        self.read.append(name)
        if name in self.gates:
            assert self.gates[name].wait(timeout=120)
        if name in self.errors:
            raise self.errors[name]
        matrix = torch.zeros(1, self.num_bytes_per_layer // 8)
        layer = {name: LoraPair(a_RI=matrix, b_RO=matrix)}
        return LoadedAdapter(version=name.encode(), layers=(layer,) * NUM_LAYERS)

    def install_adapter(self, slot: int, adapter: LoadedAdapter, layer_index: int) -> None:
        (name,) = adapter.layers[layer_index]
        self.slots[slot][layer_index] = name
        self._num_installed_layers += 1
        if layer_index == NUM_LAYERS - 1:
            self.installed.append((slot, name))

    def execute(self, inputs: StepInputs) -> StepOutputs:
        self.most_installed_layers = max(self.most_installed_layers, self._num_installed_layers)
        self._num_installed_layers = 0
        slots = inputs.adapter_slots or [None] * len(inputs.query_lens)
        for row in inputs.sampling_rows:
            name = self.names.get(row.prompt_token_ids[0], "")
            ends = [sum(inputs.query_lens[: i + 1]) for i in range(len(inputs.query_lens))]
            slot = slots[next(i for i, end in enumerate(ends) if row.logit_index < end)]
            assert (slot is None) == (name == "")
            assert slot is None or self.slots[slot] == [name] * NUM_LAYERS
        return super().execute(inputs)


class Rig:
    """An engine, and its requests by the first token of their prompts."""

    def __init__(self, num_slots: int, *, max_num_seqs: int = 16, **sizes: int) -> None:
        self.runner = SlotSimulator(num_slots, **sizes)
        self.slots = AdapterSlots(self.runner, Path, check_period_s=1000.0)
        self.engine = Engine(
            self.runner, EngineConfig(max_num_seqs=max_num_seqs), adapters=self.slots
        )
        self.failures: dict[str, ServingError] = {}
        self.finished: list[str] = []

    def request(
        self,
        number: int,
        adapter: str,
        *,
        max_tokens: int = 4,
        priority: int = 0,
        tenant: str = "",
        beam: BeamParams | None = None,
    ) -> Request:
        self.runner.names[number] = adapter
        return Request(
            request_id=f"{adapter}.{number}",
            prompt_token_ids=[number, 1, 2, 3, 4],
            sampling_params=SamplingParams(max_tokens=max_tokens, ignore_eos=True, beam=beam),
            adapter=adapter,
            priority=priority,
            tenant=tenant,
        )

    def add(self, number: int, adapter: str, **options: Any) -> None:
        """`options`: those of `request`."""
        self.engine.add_request(self.request(number, adapter, **options))

    def step(self) -> list[TokenDelta]:
        step = self.engine.step()
        self.failures |= step.failures
        deltas = list(step)
        self.finished += [delta.request_id for delta in deltas if delta.finish_reason]
        self.engine.check()
        return deltas

    def run(self) -> None:
        while self.engine.has_unfinished:
            self.step()
            if self.engine.is_stalled:
                self.engine.wait_for_adapters()


def test_the_least_recently_used_adapter_leaves() -> None:
    rig = Rig(2)
    for number, name in enumerate(["a", "b", "a", "c", "a", "b"]):
        rig.add(number, name)
        rig.run()
    assert rig.runner.installed == [(0, "a"), (1, "b"), (1, "c"), (1, "b")]
    assert rig.engine.stats().loaded_adapters == ["a", "b"]


def test_sequences_of_one_adapter_read_it_once() -> None:
    rig = Rig(2)
    for number in range(6):
        rig.add(number, "a")
    rig.run()
    assert rig.runner.read == ["a"]


def test_an_adapter_that_is_used_stays_and_those_who_wait_are_served_in_turn() -> None:
    rig = Rig(1)
    rig.add(0, "a", max_tokens=6)
    rig.run()
    rig.add(1, "a", max_tokens=6)
    rig.step()
    rig.add(2, "b")
    for number in range(3, 6):  # they come after b, and must not keep it waiting
        rig.step()
        rig.add(number, "a")
    rig.run()
    assert rig.finished == ["a.0", "a.1", "b.2", "a.3", "a.4", "a.5"]


def test_while_one_waits_for_a_slot_the_base_model_and_loaded_adapters_go_on() -> None:
    rig = Rig(2)
    rig.runner.gates["slow"] = threading.Event()
    rig.add(0, "slow")
    rig.add(1, "")
    rig.add(2, "a")
    while not {".1", "a.2"} <= set(rig.finished):
        rig.step()
    assert "slow.0" not in rig.finished
    rig.runner.gates["slow"].set()
    rig.run()
    assert "slow.0" in rig.finished


def test_every_waiting_adapter_lets_another_slot_become_free() -> None:
    rig = Rig(2)
    rig.add(0, "a", max_tokens=8)
    rig.add(1, "b", max_tokens=8)
    rig.run()
    rig.add(2, "a", max_tokens=8)
    rig.add(3, "b", max_tokens=8)
    rig.step()
    rig.add(4, "c")
    rig.add(5, "d")
    rig.step()
    assert rig.slots.held == {"a", "b", "c", "d"}
    rig.run()
    assert len(rig.finished) == 6


def test_a_more_important_request_does_not_wait_for_a_slot_behind_others() -> None:
    rig = Rig(1)
    rig.add(0, "a", max_tokens=8, priority=PRIORITY_BATCH)
    rig.run()
    rig.add(1, "b", priority=PRIORITY_BATCH)
    rig.add(2, "c")
    rig.run()
    assert rig.finished == ["a.0", "c.2", "b.1"]


def test_a_large_adapter_is_installed_over_several_steps_while_others_generate() -> None:
    rig = Rig(1)
    rig.runner.num_bytes_per_layer = 64 * 2**20
    rig.add(0, "", max_tokens=60)
    rig.step()
    rig.add(1, "large")
    rig.step()
    rig.engine.wait_for_adapters()
    while "large.1" not in rig.finished:
        rig.step()
    assert rig.runner.most_installed_layers == 1
    assert "" not in rig.finished


def test_an_adapter_that_cannot_be_used_fails_its_requests_and_no_others() -> None:
    rig = Rig(2)
    rig.runner.errors["broken"] = ValueError("use_dora is not supported")
    rig.runner.errors["torn"] = RuntimeError("the disk is gone")
    rig.add(0, "broken")
    rig.add(1, "torn")
    rig.add(2, "broken")
    rig.add(3, "fine")
    rig.add(4, "")
    rig.run()
    assert sorted(rig.finished) == [".4", "fine.3"]
    assert rig.failures.keys() == {"broken.0", "broken.2", "torn.1"}
    refused, torn = rig.failures["broken.0"], rig.failures["torn.1"]
    assert isinstance(refused, BadRequestError)
    assert str(refused) == "The adapter 'broken' cannot be used: use_dora is not supported"
    assert isinstance(torn, InternalError)
    assert "disk" not in str(torn)
    del rig.runner.errors["broken"]  # it has been mended
    rig.add(5, "broken")
    rig.run()
    assert "broken.5" in rig.finished


def test_aborted_requests_leave_their_adapter_behind() -> None:
    rig = Rig(1)
    rig.runner.gates["a"] = threading.Event()
    rig.add(0, "a")
    rig.step()
    assert rig.engine.is_stalled
    rig.engine.abort_request("a.0")
    assert not rig.engine.has_unfinished
    rig.runner.gates["a"].set()
    rig.add(1, "a")
    rig.run()
    assert rig.runner.read == ["a"]


def test_preempted_sequences_go_on_with_their_adapter() -> None:
    rig = Rig(2, num_blocks=16, max_model_len=64)
    for number in range(9):
        rig.add(number, "abc"[number % 3], max_tokens=20)
    rig.run()
    assert len(rig.finished) == 9
    assert rig.engine.stats().preemptions_total > 0


def test_nobody_is_preempted_for_one_whose_adapter_is_being_read() -> None:
    rig = Rig(1, max_num_seqs=4)
    rig.runner.gates["slow"] = threading.Event()
    for number in range(4):
        rig.add(number, "", tenant="crowd", max_tokens=20)
    rig.step()
    rig.add(9, "slow", tenant="other")
    for _ in range(5):
        rig.step()
    assert rig.engine.stats().preemptions_total == 0
    rig.runner.gates["slow"].set()
    rig.engine.wait_for_adapters()
    rig.step()
    assert rig.engine.stats().preemptions_total == 1
    rig.run()


def test_beams_that_wait_for_one_of_theirs_do_not_keep_the_only_slot() -> None:
    """One of them has lost its blocks, and its adapter is held for the next one's sake."""
    rig = Rig(1, num_blocks=9, max_model_len=36, max_num_seqs=8)
    rig.add(0, "a", beam=BeamParams(width=6), max_tokens=24)
    while rig.engine.stats().num_requests_running < 6:
        rig.step()
        rig.engine.wait_for_adapters()
    rig.add(1, "b", tenant="other")
    for _ in range(500):
        rig.step()
        if not rig.engine.has_unfinished:
            break
        if rig.engine.is_stalled:
            rig.engine.wait_for_adapters()
    assert rig.engine.stats().preemptions_total > 0
    assert sorted(rig.finished) == ["a.0", "b.1"]


def test_an_engine_without_slots_refuses_adapters() -> None:
    engine = Engine(KVSimulator(num_blocks=8, block_size=4, max_model_len=16), EngineConfig())
    with pytest.raises(BadRequestError, match="no slots for adapters"):
        engine.add_request(Rig(1).request(0, "a"))


def test_files_that_change_are_read_again_while_old_sequences_end_with_the_old_ones(
    tmp_path: Path,
) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (tmp_path / name).write_text("old")
    rig = Rig(2)
    rig.slots = AdapterSlots(rig.runner, lambda name: tmp_path, check_period_s=0.0)
    # The host's version is the folder's name, which is not what the check finds: a change.
    rig.engine = Engine(rig.runner, EngineConfig(), adapters=rig.slots)
    for number, max_tokens in ((0, 100), (1, 2)):
        rig.add(number, "x", max_tokens=max_tokens)
        rig.runner.names[number] = tmp_path.name
        rig.step()
        rig.engine.wait_for_adapters()
        rig.step()
        assert rig.engine.stats().loaded_adapters == ["x"]
        wait(rig.slots._checks.values())
        rig.step()
        assert rig.engine.stats().loaded_adapters == []
    rig.run()
    assert rig.finished == ["x.1", "x.0"]
    assert [slot for slot, _ in rig.runner.installed] == [0, 1]


async def test_streams_wait_without_steps_while_an_adapter_is_read() -> None:
    rig = Rig(1)
    rig.runner.gates["a"] = threading.Event()
    rig.runner.errors["broken"] = ValueError("no")
    engine = AsyncEngine(rig.engine)
    engine.start()
    stream = engine.generate(rig.request(0, "a"))
    opened = anext(stream)
    rig.runner.gates["a"].set()
    first = await opened
    assert first.request_id == "a.0"
    assert [delta async for delta in stream][-1].finish_reason is not None
    with pytest.raises(BadRequestError, match="cannot be used: no"):
        async for _ in engine.generate(rig.request(1, "broken")):
            pass
    assert engine.num_open_requests == 0
    await engine.stop()
