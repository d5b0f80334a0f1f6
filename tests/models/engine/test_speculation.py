"""Guessed tokens change the time and nothing else: on a simulated cache."""

import itertools
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.config import EngineConfig, SpeculativeConfig
from cluster.types import FinishReason, Request
from models.engine.draft_price import DraftPrice
from models.engine.engine import Engine
from models.engine.sampler import Sampler
from models.engine.step_inputs import StepInputs, StepOutputs
from tests.models.engine import test_mixed_requests
from tests.models.engine.guess_oracle import ALWAYS, guess_by
from tests.models.engine.kv_simulator import KVSimulator, next_token
from tests.models.engine.test_scheduler import Script, expected_output, make_request, operations


def simulated_continuation(begun: list[int], num_tokens: int) -> list[int]:
    text = list(begun)
    for _ in range(num_tokens):
        text.append(next_token(text))
    return text[len(begun) :]


def simulated_engine(
    guesses: SpeculativeConfig | None = ALWAYS, **config: object
) -> tuple[Engine, KVSimulator]:
    runner = KVSimulator(num_blocks=64, block_size=4, max_model_len=128)
    limits = EngineConfig(**{"max_num_seqs": 8, "max_num_batched_tokens": 32, **config})  # type: ignore[arg-type]
    return Engine(runner, limits.model_copy(update={"speculative_config": guesses})), runner


@settings(max_examples=200)
@given(
    operations,
    st.sampled_from([1, 2, 4, 7]),  # block size
    st.sampled_from([8, 11, 32]),  # budget
    st.booleans(),
    st.integers(0, 30),  # blocks beyond one sequence's
    st.integers(0, 1000),
)
def test_random_operations_with_guesses_never_lose_mix_up_or_starve_anything(
    operations: list[tuple],
    block_size: int,
    budget: int,
    prefix_caching: bool,
    spare: int,
    seed: int,
) -> None:
    limit = 56
    runner = KVSimulator(
        num_blocks=-(-limit // block_size) + spare, block_size=block_size, max_model_len=limit
    )
    config = EngineConfig(
        max_num_seqs=8,
        max_num_batched_tokens=budget,
        enable_prefix_caching=prefix_caching,
        max_batch_slowdown=None,
        speculative_config=ALWAYS,
    )
    with pytest.MonkeyPatch.context() as monkeypatch:
        guess_by(monkeypatch, simulated_continuation, seed=seed)
        script = Script(Engine(runner, config))
        for operation in operations:
            script.carry_out(operation)
        script.finish()
    stats = script.engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    for request_id, (prompt, n, max_tokens) in script.requests.items():
        if request_id not in script.aborted:
            expected = expected_output(prompt, max_tokens, limit=limit)
            for index in range(n):
                output = script.outputs.get((request_id, index), [])
                is_whole = (request_id, index) not in script.ended
                assert output == (expected if is_whole else expected[: len(output)])


@pytest.mark.parametrize("seed", range(30))
def test_all_kinds_of_requests_end_as_if_none_had_guessed(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess_by(monkeypatch, simulated_continuation, seed=seed)
    chance = random.Random(seed)
    engine, _ = test_mixed_requests.make_engine(
        chance.randint(10, 24),
        max_num_seqs=chance.randint(5, 9),
        max_num_batched_tokens=chance.choice([9, 16, 64]),
        speculative_config=ALWAYS,
    )
    requests: list[Request] = []
    outputs: dict[tuple[str, int], list[int]] = {}
    for _ in range(60):
        if chance.random() < 0.4:
            requests.append(test_mixed_requests.random_request(chance, len(requests)))
            engine.add_request(requests[-1])
        if chance.random() < 0.3:
            engine.interrupt()
        test_mixed_requests.step(engine, outputs)
    test_mixed_requests.run(engine, outputs)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    for request in requests:
        for index in request.indices:
            expected = test_mixed_requests.expected(request, index)
            assert outputs[(request.request_id, index)] == expected


def test_tokens_that_come_true_come_in_one_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "models.engine.prompt_lookup.PromptLookup.guess",
        lambda lookup, count: simulated_continuation(lookup._token_ids, count),
    )
    engine, _ = simulated_engine()
    engine.add_request(make_request("r", [1, 2, 3], max_tokens=10, ignore_eos=True))
    steps = []
    while engine.has_unfinished:
        steps.append([(delta.token_ids, delta.finish_reason) for delta in engine.step()])
        engine.check()
    expected = simulated_continuation([1, 2, 3], 10)
    # The first of the prompt; then six, and of the next six as many as max_tokens allows.
    assert steps == [
        [(expected[:1], None)],
        [(expected[1:7], None)],
        [(expected[7:], FinishReason.LENGTH)],
    ]
    stats = engine.stats()
    assert stats.spec_decode_drafts_total == 2
    assert stats.spec_decode_draft_tokens_total == 5 + 2
    assert stats.spec_decode_accepted_tokens_total == 5 + 2
    assert stats.generation_tokens_total == 10


def test_a_stop_token_among_those_that_come_true_is_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "models.engine.prompt_lookup.PromptLookup.guess",
        lambda lookup, count: simulated_continuation(lookup._token_ids, count),
    )
    engine, _ = simulated_engine()
    free = simulated_continuation([1, 2, 3], 10)
    engine.add_request(make_request("r", [1, 2, 3], stop_token_ids=(free[4],), ignore_eos=True))
    deltas = [delta for _ in range(2) for delta in engine.step()]
    assert not engine.has_unfinished
    assert [token for delta in deltas for token in delta.token_ids] == free[:5]
    assert deltas[-1].stop_token_id == free[4]


def test_blocks_hold_no_guess_that_did_not_come_true_when_others_find_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The simulator reads back what the second request finds in the cache."""
    guess_by(monkeypatch, simulated_continuation, seed=4)
    engine, runner = simulated_engine()
    prompt = list(range(10))
    engine.add_request(make_request("first", prompt, max_tokens=40, ignore_eos=True))
    outputs = [token for _ in range(50) for delta in engine.step() for token in delta.token_ids]
    assert outputs == simulated_continuation(prompt, 40)
    before = runner.num_computed_tokens
    engine.add_request(make_request("second", prompt + outputs, max_tokens=1))
    (delta,) = engine.step()
    assert delta.token_ids == simulated_continuation(prompt + outputs, 1)
    assert delta.num_cached_tokens >= 44  # all but what the last step may have filled
    assert runner.num_computed_tokens - before == 50 - delta.num_cached_tokens


class FragileSimulator(KVSimulator):
    """Wrong guesses end in something that is no number."""

    def execute(self, inputs: StepInputs) -> StepOutputs:
        outputs = super().execute(inputs)
        failed = set()
        for index, row in enumerate(inputs.sampling_rows):
            context = [*row.prompt_token_ids, *row.output_token_ids]
            count = len(row.guessed_token_ids)
            if list(row.guessed_token_ids) != simulated_continuation(context, count):
                failed.add(index)
        return StepOutputs(
            token_ids=outputs.token_ids,
            logprobs=outputs.logprobs,
            prompt_logprobs=[],
            failed_rows=frozenset(failed),
        )


def test_a_guess_that_ends_in_no_number_costs_its_blocks_and_no_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess_by(monkeypatch, simulated_continuation, seed=1)
    runner = FragileSimulator(num_blocks=64, block_size=4, max_model_len=128)
    engine = Engine(runner, EngineConfig(max_num_seqs=8, speculative_config=ALWAYS))
    engine.add_request(make_request("r", [1, 2, 3], max_tokens=60, ignore_eos=True))
    output: list[int] = []
    while engine.has_unfinished:
        output += [token for delta in engine.step() for token in delta.token_ids]
        engine.check()
    assert output == simulated_continuation([1, 2, 3], 60)
    assert engine.stats().preemptions_total > 0


def test_guesses_take_no_token_and_no_block_that_somebody_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess_by(monkeypatch, simulated_continuation, seed=2)
    num_steps = {}
    for guesses in (None, ALWAYS):
        runner = KVSimulator(num_blocks=12, block_size=4, max_model_len=48)
        config = EngineConfig(max_num_seqs=4, max_num_batched_tokens=4, speculative_config=guesses)
        engine = Engine(runner, config)
        for index in range(4):
            engine.add_request(
                make_request(str(index), [index + 1], max_tokens=11, ignore_eos=True)
            )
        engine.step()
        num_steps[guesses] = 1
        while engine.has_unfinished:
            engine.step()
            num_steps[guesses] += 1
            engine.check()
        assert engine.stats().preemptions_total == 0
    assert num_steps[None] == 11
    # Four sequences fill the budget: nobody guesses until one of them has ended.
    assert num_steps[ALWAYS] == num_steps[None]


def test_where_guesses_never_come_true_they_are_seldom_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "models.engine.prompt_lookup.PromptLookup.guess",
        lambda lookup, count: [
            token ^ 1 for token in simulated_continuation(lookup._token_ids, count)
        ],
    )
    monkeypatch.setattr(DraftPrice, "of", lambda self, num_sequences: 0.05)
    runner = KVSimulator(num_blocks=512, block_size=4, max_model_len=2048)
    engine = Engine(runner, EngineConfig(max_num_seqs=2, speculative_config=SpeculativeConfig()))
    engine.add_request(make_request("r", [1, 2, 3], max_tokens=1500, ignore_eos=True))
    assert len([token for _ in range(1500) for d in engine.step() for token in d.token_ids]) == 1500
    stats = engine.stats()
    assert stats.spec_decode_accepted_tokens_total == 0
    assert 0 < stats.spec_decode_draft_tokens_total < 100
    assert stats.spec_decode_drafts_total < 40


def test_what_costs_too_much_is_tried_now_and_then_and_not_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    guess_by(monkeypatch, simulated_continuation, seed=2)
    monkeypatch.setattr(DraftPrice, "of", lambda self, num_sequences: 1.0)
    engine, _ = simulated_engine(SpeculativeConfig())
    engine.add_request(make_request("r", [1, 2, 3], max_tokens=120, ignore_eos=True))
    while engine.has_unfinished:
        engine.step()
    assert engine.stats().spec_decode_draft_tokens_total <= 2


class RepeatingSimulator(KVSimulator):
    """Says a fixed text again and again, whatever the prompt is."""

    TEXT = (41, 7, 60, 22, 95, 3, 18, 77, 30)

    def execute(self, inputs: StepInputs) -> StepOutputs:
        outputs = super().execute(inputs)
        chosen = [
            self.TEXT[(row.position - len(row.prompt_token_ids)) % len(self.TEXT)]
            for row in inputs.sampling_rows
        ]
        return StepOutputs(token_ids=chosen, logprobs=outputs.logprobs, prompt_logprobs=[])


def test_a_text_that_quotes_its_prompt_is_looked_up_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftPrice, "of", lambda self, num_sequences: 0.05)
    runner = RepeatingSimulator(num_blocks=64, block_size=4, max_model_len=128)
    config = EngineConfig(max_num_seqs=2, speculative_config=SpeculativeConfig())
    engine = Engine(runner, config)
    prompt = [*range(20), *RepeatingSimulator.TEXT, 50, 51]
    engine.add_request(make_request("r", prompt, max_tokens=81, ignore_eos=True))
    num_steps, output = 0, []
    while engine.has_unfinished:
        output += [token for delta in engine.step() for token in delta.token_ids]
        num_steps += 1
    assert output == list(RepeatingSimulator.TEXT) * 9
    assert num_steps < 20
    stats = engine.stats()
    assert stats.spec_decode_accepted_tokens_total > 0.8 * stats.spec_decode_draft_tokens_total


class MarkovRunner(KVSimulator):
    """Draws each token, with the engine's sampler, by the one before it."""

    LOGITS = torch.randn(5, 5, generator=torch.Generator().manual_seed(3))

    def __init__(self) -> None:
        super().__init__(num_blocks=512, block_size=4, max_model_len=32)
        self.vocab_size = 5
        self.eos_token_ids = frozenset()

    def execute(self, inputs: StepInputs) -> StepOutputs:
        rows = inputs.sampling_rows
        logits_RV = self.LOGITS[[inputs.token_ids[row.logit_index] for row in rows]]
        token_ids, logprobs = Sampler().sample(logits_RV, rows)
        return StepOutputs(token_ids=token_ids, logprobs=logprobs, prompt_logprobs=[])


def test_sampled_tokens_have_the_models_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chi-squared, over three tokens, against the exact probabilities."""
    monkeypatch.setattr(
        "models.engine.prompt_lookup.PromptLookup.guess",
        lambda lookup, count: [int(MarkovRunner.LOGITS[lookup._token_ids[-1]].argmax()), 2, 4],
    )
    config = EngineConfig(max_num_seqs=40, speculative_config=ALWAYS)
    engine = Engine(MarkovRunner(), config)
    num_samples, temperature = 6000, 0.8
    for seed in range(num_samples):
        engine.add_request(
            make_request(str(seed), [0], seed=seed, temperature=temperature, max_tokens=3)
        )
    outputs: dict[str, tuple[int, ...]] = {}
    while engine.has_unfinished:
        for delta in engine.step():
            outputs[delta.request_id] = outputs.get(delta.request_id, ()) + tuple(delta.token_ids)
    assert engine.stats().spec_decode_accepted_tokens_total > num_samples / 10
    probabilities = (MarkovRunner.LOGITS / temperature).double().softmax(-1)
    paths = list(itertools.product(range(5), repeat=3))
    expected = np.array(
        [
            num_samples * float(probabilities[0, a] * probabilities[a, b] * probabilities[b, c])
            for a, b, c in paths
        ]
    )
    counts: NDArray[np.int64] = np.array(
        [sum(path == output for output in outputs.values()) for path in paths]
    )
    is_common = expected >= 5
    chi_squared = float(((counts - expected)[is_common] ** 2 / expected[is_common]).sum())
    degrees = int(is_common.sum())
    assert abs(chi_squared - degrees) < 3 * (2 * degrees) ** 0.5
