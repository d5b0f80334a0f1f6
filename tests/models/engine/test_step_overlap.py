"""Steps that begin before the tokens of the one before are read give the same tokens."""

import random
from pathlib import Path

import pytest
import torch

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from tests.models.conftest import FindSample, MakeCheckpoint
from tests.models.engine_runs import assert_same, greedy, prompts_of_mixed_lengths
from tests.models.engine_runs import run as run_all
from tests.models.family_samples import FAMILIES, all_requests
from tests.models.parallel.rank_threads import engine_config, engine_on

Outputs = dict[str, list[int]]


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama")


def config(*, overlap_steps: bool, num_blocks: int = 512, max_num_seqs: int = 8) -> EngineConfig:
    return EngineConfig(
        kv_cache_memory_bytes=num_blocks * 4 * 512,
        max_model_len=min(512, num_blocks * 4),
        block_size=4,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=16,
        overlap_steps=overlap_steps,
    )


def engine_of(checkpoint: Path, limits: EngineConfig) -> Engine:
    return Engine(ModelRunner(checkpoint, limits, device="cpu"), limits)


def random_request(rng: random.Random, index: int) -> Request:
    params = SamplingParams(
        temperature=rng.choice([0.0, 0.0, 0.7, 1.3]),
        top_p=rng.choice([1.0, 0.9]),
        top_k=rng.choice([-1, 20]),
        repetition_penalty=rng.choice([1.0, 1.0, 1.2]),
        seed=index,
        n=rng.choice([1, 1, 1, 2]),
        max_tokens=rng.randint(1, 20),
        logprobs=rng.choice([None, None, None, 2]),
        # Some of the tokens that come up: sequences end where nobody could know.
        stop_token_ids=tuple(rng.sample(range(257), 4)),
    )
    prompt = rng.choices(range(3, 257), k=rng.randint(1, 20))
    return Request(request_id=str(index), prompt_token_ids=prompt, sampling_params=params)


def run(checkpoint: Path, limits: EngineConfig, seed: int) -> tuple[Outputs, int]:
    """Requests that come while others run, some of which are aborted; the outputs of those that are
    not, and how many steps were guessed right."""
    rng = random.Random(seed)
    engine = engine_of(checkpoint, limits)
    requests = [random_request(rng, index) for index in range(8)]
    aborted = {str(index) for index in rng.sample(range(8), 2)}
    outputs: Outputs = {}
    while requests or engine.has_unfinished:
        if requests and (not engine.has_unfinished or rng.random() < 0.15):
            engine.add_request(requests.pop())
        if rng.random() < 0.05:
            for request_id in aborted:
                engine.abort_request(request_id)
        for delta in engine.step():
            outputs.setdefault(f"{delta.request_id}/{delta.index}", []).extend(delta.token_ids)
        engine.check()
    num_hits = 0 if engine._overlap is None else engine._overlap.num_hits
    engine.close()
    kept = {key: value for key, value in outputs.items() if key.split("/")[0] not in aborted}
    return kept, num_hits


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("num_blocks", [512, 16])
def test_outputs_are_those_of_steps_one_after_the_other(
    checkpoint: Path, seed: int, num_blocks: int
) -> None:
    """With room for all, and with so little that sequences are preempted."""
    outputs, num_hits = run(checkpoint, config(overlap_steps=True, num_blocks=num_blocks), seed)
    expected, none = run(checkpoint, config(overlap_steps=False, num_blocks=num_blocks), seed)
    assert outputs == expected
    assert num_hits > 0
    assert none == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_of_every_kind_and_family_give_the_same(
    family_sample: FindSample, family: str
) -> None:
    """Those that want no more than tokens, whose steps are launched ahead, and all others."""
    sample = family_sample(family)
    plain = greedy(prompts_of_mixed_lengths(), temperature=0.8, seed=2)
    one_by_one = ModelRunner(sample.folder, engine_config(), dtype="float32", device="cpu")
    limits = engine_config(
        kv_cache_memory_bytes=sample.memory_of(26), max_num_batched_tokens=64, overlap_steps=True
    )
    runner = ModelRunner(sample.folder, limits, dtype="float32", device="cpu")
    engine = Engine(runner, limits, grammar_compiler=sample.compiler)
    assert_same(run_all(engine, plain), run_all(engine_on(one_by_one), plain))
    assert engine._overlap is not None
    assert engine._overlap.num_hits > 0
    assert_same(run_all(engine, all_requests()), sample.expected)
    assert engine.stats().preemptions_total > 0


def test_nearly_every_step_of_a_steady_batch_is_launched_ahead(checkpoint: Path) -> None:
    engine = engine_of(checkpoint, config(overlap_steps=True))
    params = SamplingParams(temperature=0.0, max_tokens=20, ignore_eos=True)
    for index in range(3):
        engine.add_request(
            Request(
                request_id=str(index), prompt_token_ids=[5, 6, 7 + index], sampling_params=params
            )
        )
    num_steps = 0
    while engine.has_unfinished:
        engine.step()
        num_steps += 1
    assert num_steps == 20
    # Not the one that computes the prompts, nor the first that decodes.
    assert engine._overlap is not None
    assert engine._overlap.num_hits == 18
    engine.close()


def test_a_choice_that_was_not_settled_is_not_built_upon(checkpoint: Path) -> None:
    """top_p among more candidates than are looked at first: the sort settles it afterwards."""
    params = SamplingParams(temperature=2.0, top_p=0.99, seed=3, max_tokens=12, ignore_eos=True)
    outputs = []
    for overlaps in (True, False):
        engine = engine_of(checkpoint, config(overlap_steps=overlaps))
        runner = engine._runner
        assert isinstance(runner, ModelRunner)
        runner._sampler._num_candidates = 4
        engine.add_request(
            Request(request_id="a", prompt_token_ids=[9, 8, 7], sampling_params=params)
        )
        tokens: list[int] = []
        while engine.has_unfinished:
            for delta in engine.step():
                tokens += delta.token_ids
        outputs.append(tokens)
        if engine._overlap is not None:
            assert engine._overlap.num_hits == 0
        engine.close()
    assert outputs[0] == outputs[1]
    assert len(outputs[0]) == 12


def test_a_wrong_guess_leaves_numbers_that_are_none_behind_and_no_harm(checkpoint: Path) -> None:
    """What a guessed step wrote for a sequence that had ended is not seen by the next owner."""
    limits = config(overlap_steps=True, max_num_seqs=1)
    engine = engine_of(checkpoint, limits)
    runner = engine._runner
    assert isinstance(runner, ModelRunner)
    alone: list[list[int]] = []
    for poison in (False, True):
        if poison:
            with torch.inference_mode():
                runner._kv_cache.tensor_YB2KSD.fill_(float("nan"))
        params = SamplingParams(temperature=0.0, max_tokens=9, ignore_eos=True)
        engine.add_request(
            Request(
                request_id=str(poison),
                prompt_token_ids=[4, 4, 5],
                sampling_params=params,
                cache_salt=str(poison),
            )
        )
        tokens: list[int] = []
        while engine.has_unfinished:
            for delta in engine.step():
                tokens += delta.token_ids
        alone.append(tokens)
    assert alone[0] == alone[1]
    engine.close()
