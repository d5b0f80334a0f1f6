"""A group of real processes: what it says of itself, and how it ends when a rank does not go on."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest
import torch

from cluster.config import EngineConfig, ModelConfig
from cluster.errors import EngineGoneError, ServiceUnavailableError
from cluster.types import Request, SamplingParams
from models.checkpoint import CheckpointError
from models.decoder import Decoder
from models.engine.async_engine import AsyncEngine
from models.engine.build import build_engine, build_runner
from models.engine.model_runner import ModelRunner
from models.engine.runner import Runner
from models.engine.step_inputs import StepInputs
from models.llm import LLM
from models.parallel import runner as runner_module
from models.parallel.group import TPGroup
from models.parallel.rank_link import ChildRanks, RankError
from models.parallel.runner import TPRunner
from models.parallel.step_order import StepOrder
from models.weights import load_weights
from tests.models.conftest import MakeCheckpoint
from tests.models.engine_runs import greedy, prompts_of_mixed_lengths, run, tokens
from tests.models.grammar.grammar_walk import EOS_TOKEN_IDS, byte_level_tokenizer
from tests.models.parallel.rank_threads import (
    engine_config,
    engine_on,
    parallel_runner,
    patient_ranks,
)

ENDLESS = Request(
    request_id="endless",
    prompt_token_ids=[5, 6, 7],
    sampling_params=SamplingParams(temperature=0.0, max_tokens=200, ignore_eos=True),
)


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    folder = make_checkpoint("llama", vocab_size=545, eos_token_id=sorted(EOS_TOKEN_IDS))
    byte_level_tokenizer(folder / "tokenizer.json")
    return folder


@pytest.fixture(autouse=True)
def _threads_as_before() -> object:
    num_threads = torch.get_num_threads()
    with patient_ranks():
        yield
    torch.set_num_threads(num_threads)


def process_runner(folder: Path, size: int) -> TPRunner:
    return TPRunner(
        folder, engine_config(), ranks=ChildRanks().start(size), dtype="float32", device="cpu"
    )


def assert_gone(process_ids: list[int]) -> None:
    assert not [pid for pid in process_ids if psutil.pid_exists(pid)]


async def fail_in_the_middle(
    folder: Path, size: int, signal_number: int, *, lose_patience: Callable[[], None] = lambda: None
) -> str:
    """Send a signal to rank 1 while tokens come; what the group's end is called."""
    runner = process_runner(folder, size)
    engine = AsyncEngine(engine_on(runner))
    engine.start()
    stream = engine.generate(ENDLESS)
    await anext(stream)
    os.kill(runner.process_ids[0], signal_number)
    lose_patience()
    with pytest.raises(EngineGoneError, match="engine failed"):
        async for _ in stream:
            pass
    with pytest.raises(RuntimeError):
        engine.check_health()
    with pytest.raises(ServiceUnavailableError):
        engine.submit(ENDLESS, lambda delta: None)
    assert_gone(runner.process_ids)
    with pytest.raises(RankError) as caught:
        runner.check_health()
    await engine.stop()
    return str(caught.value)


async def test_a_killed_rank_ends_every_request_with_an_error(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Long before an exchange between ranks has reached its limit.
    monkeypatch.setattr(runner_module, "STEP_TIMEOUT_S", 3600.0)
    message = await asyncio.wait_for(fail_in_the_middle(folder, 2, signal.SIGKILL), 120)
    assert message.startswith("rank 1 (process ")
    assert message.endswith("was killed by signal 9")


async def test_of_four_ranks_the_one_that_hangs_is_blamed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    groups: list[TPGroup] = []
    join = TPGroup.join

    def joined(*args: Any, **options: Any) -> TPGroup:
        groups.append(join(*args, **options))
        return groups[0]

    def lose_patience() -> None:
        """Limits that are reached: with those from the start, a busy machine might look hung."""
        backend: Any = groups[0]._backend
        backend._set_default_timeout(timedelta(seconds=1))
        ranks = groups[0].native_ranks
        if ranks is not None:
            ranks._fields.timeout_s = 1.0
        monkeypatch.setattr(runner_module, "STEP_TIMEOUT_S", 1.0)
        monkeypatch.setattr(runner_module, "_SETTLING_TIMEOUT_S", 1.0)

    monkeypatch.setattr(TPGroup, "join", joined)
    message = await fail_in_the_middle(folder, 4, signal.SIGSTOP, lose_patience=lose_patience)
    assert message.startswith("rank 1 (process ")
    assert message.endswith("does not answer")


def test_a_rank_that_is_killed_while_nothing_happens_is_noticed(folder: Path) -> None:
    runner = process_runner(folder, 2)
    as_runner: Runner = runner
    as_runner.check_health()
    (process_id,) = runner.process_ids
    os.kill(process_id, signal.SIGKILL)
    os.waitid(os.P_PID, process_id, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RankError, match="was killed by signal 9"):
        as_runner.check_health()
    runner.close()
    assert_gone([process_id])


async def test_an_idle_engine_without_one_of_its_ranks_is_not_healthy_and_ends_the_others(
    folder: Path,
) -> None:
    runner = process_runner(folder, 4)
    engine = AsyncEngine(engine_on(runner))
    engine.start()
    engine.check_health()
    os.kill(runner.process_ids[1], signal.SIGKILL)
    pid = runner.process_ids[1]
    await asyncio.to_thread(os.waitid, os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RankError, match=r"rank 2 .* was killed by signal 9"):
        engine.check_health()
    await engine.stop()
    assert_gone(runner.process_ids)


def test_an_offline_model_on_two_ranks_gives_the_same_texts_and_leaves_no_process(
    folder: Path,
) -> None:
    prompts = prompts_of_mixed_lengths()[:4]
    params = SamplingParams(temperature=0.0, max_tokens=6)
    config = EngineConfig(max_model_len=128, num_threads=2)
    alone = LLM(folder, dtype="float32", device="cpu", engine_config=config)
    expected = [output.continuations[0].text for output in alone.generate(prompts, params)]
    with LLM(
        folder, dtype="float32", device="cpu", tensor_parallel_size=2, engine_config=config
    ) as llm:
        assert "2 ranks" in llm.engine.describe()
        assert "(1 threads)" in llm.engine.describe()
        texts = [output.continuations[0].text for output in llm.generate(prompts, params)]
        runner = llm.engine._runner
        assert isinstance(runner, TPRunner)
        process_ids = runner.process_ids
        assert len(process_ids) == 1
    assert texts == expected
    assert_gone(process_ids)


def test_a_rank_ends_when_rank_0_is_killed(folder: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from cluster.config import EngineConfig\n"
        "from models.parallel.rank_link import ChildRanks\n"
        "from models.parallel.runner import TPRunner\n"
        "runner = TPRunner(Path(sys.argv[1]), EngineConfig(), ranks=ChildRanks().start(2))\n"
        "print(*runner.process_ids, flush=True)\n"
        "time.sleep(600)\n"
    )
    command = [sys.executable, "-c", code, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as rank_0:
        try:
            assert rank_0.stdout is not None
            rank = psutil.Process(int(rank_0.stdout.readline()))
        finally:
            rank_0.kill()
    rank.wait(120)


def test_a_rank_that_fails_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A record of the error would keep the rank's sockets alive, as no ended process does.
    caplog.set_level(logging.CRITICAL, logger="models.parallel.worker")

    def assist(self: ModelRunner, order: StepOrder) -> None:
        raise RuntimeError("the device is out of memory")

    monkeypatch.setattr(ModelRunner, "assist", assist)
    with parallel_runner(folder, 2, step_timeout_s=3600.0) as runner:
        engine = engine_on(runner)
        engine.add_request(ENDLESS)
        with pytest.raises(RankError, match=r"^rank 1 .* failed: the device is out of memory$"):
            engine.step()
        with pytest.raises(RankError, match="out of memory"):
            runner.check_health()


def test_ranks_end_when_rank_0_fails_though_its_process_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parallel_runner(folder, 4, step_timeout_s=3600.0) as runner:
        engine = engine_on(runner)
        engine.add_request(ENDLESS)

        def fail(inputs: StepInputs) -> NoReturn:
            raise RuntimeError("no memory for the step")

        monkeypatch.setattr(runner._runner, "execute", fail)  # the others wait for its sums
        with pytest.raises(RuntimeError, match="no memory for the step"):
            engine.step()
        assert [rank._handle.ending() for rank in runner._ranks] == ["ended with exit status 0"] * 3


def test_a_rank_that_cannot_load_its_part_says_why(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, logger="models.parallel.worker")  # as above

    def load(decoder: Decoder, checkpoint_dir: Path) -> None:
        if decoder.shards.rank == 1:
            raise MemoryError("no memory for the weights")
        load_weights(decoder, checkpoint_dir)

    monkeypatch.setattr("models.engine.model_runner.load_weights", load)
    with (
        pytest.raises(RankError, match=r"^rank 1 .* failed: no memory for the weights$"),
        parallel_runner(folder, 2),
    ):
        pass


def test_a_failure_of_rank_0_itself_is_raised_as_it_is(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with parallel_runner(folder, 2) as runner:
        engine = engine_on(runner)
        engine.add_request(ENDLESS)
        monkeypatch.setattr(runner._runner._sampler, "draw", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
        with pytest.raises(RankError, match="rank 0 failed: division by zero"):
            engine.step()


def test_a_checkpoint_that_cannot_be_loaded_is_refused_as_on_one_rank(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        build_runner(tmp_path, EngineConfig(), dtype="auto", device="cpu", tensor_parallel_size=2)


def test_a_damaged_checkpoint_ends_the_other_ranks(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    with pytest.raises(CheckpointError, match="no weights"), parallel_runner(tmp_path, 2):
        pass


def test_a_number_of_ranks_that_cannot_share_the_model_is_refused_before_any_starts(
    folder: Path,
) -> None:
    children = psutil.Process().children()
    config = ModelConfig(name="m", source=str(folder), device="cpu", tensor_parallel_size=3)
    with pytest.raises(
        ValueError, match=r"^tensor_parallel_size \(3\) does not divide num_attention_heads \(4\)$"
    ):
        build_engine(config, folder)
    assert psutil.Process().children() == children


def test_ranks_have_as_many_blocks_as_the_one_with_the_least_memory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory_of_rank = iter([2**20, 2**18])
    monkeypatch.setattr(
        "models.engine.model_runner.kv_cache_memory_bytes", lambda *_, **__: next(memory_of_rank)
    )
    bytes_per_block = 2 * 2 * 1 * 16 * 4 * 16
    with parallel_runner(folder, 2) as runner:
        assert runner.num_blocks == 2**18 // bytes_per_block
        deltas = run(engine_on(runner), greedy(prompts_of_mixed_lengths()[:3]))
    assert all(tokens(mine) for mine in deltas.values())
