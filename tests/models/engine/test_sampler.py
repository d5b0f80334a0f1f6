import math
from dataclasses import replace
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.types import SamplingParams
from models.engine.randomness import uniforms
from models.engine.sampler import MIN_TEMPERATURE, NonFiniteLogitsError, Sampler, token_logprobs
from models.engine.step_inputs import SamplingRow

_TOLERANCE = 1e-5  # nearer than this to a threshold, float32 and float64 may disagree


def make_row(
    params: SamplingParams,
    *,
    seed: int = 0,
    position: int = 0,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    forbidden: tuple[int, ...] = (),
) -> SamplingRow:
    return SamplingRow(
        logit_index=0,
        params=params,
        seed=seed,
        position=position,
        prompt_token_ids=prompt or [],
        output_token_ids=output or [],
        forbidden_token_ids=forbidden,
    )


def reference_logits(logits: NDArray[np.float64], row: SamplingRow) -> NDArray[np.float64]:
    """Bias, penalties and bans, one token after the other."""
    params = row.params
    result = logits.copy()
    for token_id in range(len(result)):
        result[token_id] += (params.logit_bias or {}).get(token_id, 0.0)
        if token_id in row.prompt_token_ids or token_id in row.output_token_ids:
            is_positive = result[token_id] > 0
            factor = params.repetition_penalty
            result[token_id] *= 1 / factor if is_positive else factor
        count = list(row.output_token_ids).count(token_id)
        if count:
            result[token_id] -= params.frequency_penalty * count + params.presence_penalty
        if token_id in row.forbidden_token_ids:
            result[token_id] = -math.inf
    return result


def reference_distribution(
    logits: NDArray[np.float64], params: SamplingParams
) -> tuple[list[int], list[float], bool]:
    """Kept tokens from best to worst, their probabilities, and whether a threshold was close."""
    is_close = False
    order = sorted(range(len(logits)), key=lambda token_id: (-logits[token_id], token_id))
    scaled = (logits - logits.max()) / max(params.temperature, MIN_TEMPERATURE)
    p = np.exp(scaled)
    if params.min_p > 0:
        is_close |= bool((np.abs(p - params.min_p) < _TOLERANCE).any())
        order = [token_id for token_id in order if p[token_id] >= params.min_p]
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        cdf = np.cumsum(p[order]) / p[order].sum()
        is_close |= bool((np.abs(cdf - params.top_p) < _TOLERANCE).any())
        order = order[: int((cdf < params.top_p).sum()) + 1]
    return order, list(p[order] / p[order].sum()), is_close


def reference_choice(logits: torch.Tensor, row: SamplingRow) -> int | None:
    """The token of one row; None when it is too close to call in another precision."""
    edited = reference_logits(logits.double().numpy(), row)
    if row.params.temperature == 0:
        return int(edited.argmax())
    kept, probabilities, is_close = reference_distribution(edited, row.params)
    is_top_k_on = 0 < row.params.top_k < len(edited)
    if not is_top_k_on and row.params.top_p >= 1:  # then no order is needed
        pairs = sorted(zip(kept, probabilities, strict=True))
        kept, probabilities = [k for k, _ in pairs], [q for _, q in pairs]
    cdf = np.cumsum(probabilities)
    uniform = uniforms([row.seed], [row.position])[0]
    if is_close or (np.abs(cdf - uniform) < _TOLERANCE).any():
        return None
    return kept[int((cdf <= uniform).sum())]


params_strategy = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.001, 0.3, 1.0, 2.0]),
    top_p=st.sampled_from([1.0, 0.95, 0.7, 0.1, 1e-6]),
    top_k=st.sampled_from([0, 1, 2, 5, 17, 1000]),
    min_p=st.sampled_from([0.0, 0.05, 0.6, 1.0]),
    presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
    frequency_penalty=st.sampled_from([0.0, 0.25, -0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.25, 0.5]),
    logit_bias=st.none() | st.dictionaries(st.integers(0, 23), st.sampled_from([-100.0, 1.5])),
)
token_lists = st.lists(st.integers(0, 23), max_size=12)
rows_strategy = st.builds(
    make_row,
    params_strategy,
    seed=st.integers(0, 2**64 - 1),
    position=st.integers(0, 10_000),
    prompt=token_lists,
    output=token_lists,
    forbidden=st.sampled_from([(), (3,), (0, 23)]),
)
# Halves make ties frequent.
logit_rows = st.lists(st.integers(-8, 8).map(lambda i: i / 2), min_size=24, max_size=24)
batches = st.lists(st.tuples(logit_rows, rows_strategy), min_size=1, max_size=6)


def unzip(batch: list[tuple[list[float], SamplingRow]]) -> tuple[torch.Tensor, list[SamplingRow]]:
    return torch.tensor([logits for logits, _ in batch]), [row for _, row in batch]


@settings(max_examples=300)
@given(batches, st.sampled_from([1, 4, 256]))
def test_a_mixed_batch_matches_the_slow_reference(
    batch: list[tuple[list[float], SamplingRow]], num_candidates: int
) -> None:
    logits, rows = unzip(batch)
    token_ids, _ = Sampler(num_candidates=num_candidates).sample(logits, rows)
    for index, row in enumerate(rows):
        expected = reference_choice(logits[index], row)
        assert expected is None or token_ids[index] == expected


@settings(max_examples=150)
@given(batches, st.randoms(use_true_random=False))
def test_a_rows_choice_depends_on_nothing_else_in_the_batch(
    batch: list[tuple[list[float], SamplingRow]], random: Random
) -> None:
    sampler = Sampler(num_candidates=4)
    alone = [sampler.sample(*unzip([item]))[0][0] for item in batch]
    order = list(range(len(batch)))
    random.shuffle(order)
    shuffled, _ = sampler.sample(*unzip([batch[i] for i in order]))
    assert shuffled == [alone[i] for i in order]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_choices_over_a_large_vocabulary_are_the_same_alone_in_a_batch_and_however_sorted(
    dtype: torch.dtype,
) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = (torch.randn(24, 5003, generator=generator) * 3).to(dtype)
    kinds = [
        SamplingParams(temperature=0.8),
        SamplingParams(top_p=0.5),
        SamplingParams(top_p=0.99),  # more than 256 tokens
        SamplingParams(top_k=50, top_p=0.9),
        SamplingParams(top_k=700),
        SamplingParams(min_p=0.02),
        SamplingParams(min_p=0.001, top_k=300, top_p=0.95),
        SamplingParams(temperature=0.0),
    ]
    rows = [make_row(kinds[i % len(kinds)], seed=i, position=i * i) for i in range(24)]
    together, _ = Sampler().sample(logits, rows)
    for sampler in (Sampler(), Sampler(num_candidates=10_000), Sampler(num_candidates=3)):
        alone = [sampler.sample(logits[i : i + 1], [rows[i]])[0][0] for i in range(24)]
        assert alone == together


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(),
        SamplingParams(temperature=0.5),
        SamplingParams(temperature=2.0, top_k=7),
        SamplingParams(temperature=2.0, top_k=9, top_p=0.9),  # one more than 8 candidates
        SamplingParams(top_p=0.8),
        SamplingParams(min_p=0.1),
        SamplingParams(temperature=1.5, min_p=0.02, top_k=20, top_p=0.9),
    ],
    ids=["plain", "cold", "top_k", "top_k and top_p", "top_p", "min_p", "all"],
)
@pytest.mark.parametrize("num_candidates", [8, 256])
def test_frequencies_follow_the_distribution(params: SamplingParams, num_candidates: int) -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(5)) * 1.5
    num_draws = 20_000
    rows = [make_row(params, seed=i // 100, position=i % 100) for i in range(num_draws)]
    sampler = Sampler(num_candidates=num_candidates)
    token_ids, _ = sampler.sample(logits.expand(num_draws, -1), rows)
    kept, probabilities, _ = reference_distribution(logits.double().numpy(), params)
    counts = np.bincount(token_ids, minlength=40)
    assert counts[kept].sum() == num_draws, "a token was chosen that is filtered out"
    expected = np.array(probabilities) * num_draws
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    freedom = len(kept) - 1
    assert chi_square < freedom + 4 * math.sqrt(2 * freedom)


def test_the_same_seed_and_position_choose_the_same_and_others_do_not() -> None:
    logits = torch.zeros(1, 1000)
    params = SamplingParams()

    def draw(seed: int, position: int) -> int:
        return Sampler().sample(logits, [make_row(params, seed=seed, position=position)])[0][0]

    assert draw(1, 2) == draw(1, 2)
    assert len({draw(seed, 2) for seed in range(20)}) > 15
    assert len({draw(1, position) for position in range(20)}) > 15


def test_greedy_takes_the_lowest_of_equal_tokens_and_so_does_every_filter_down_to_one() -> None:
    logits = torch.tensor([[0.0, 7.0, 7.0, 1.0]])
    for params in (
        SamplingParams(temperature=0.0),
        SamplingParams(top_k=1),
        SamplingParams(top_p=1e-9),
    ):
        assert Sampler().sample(logits, [make_row(params)])[0] == [1]


def test_top_k_keeps_exactly_k_of_equal_tokens() -> None:
    logits = torch.tensor([[1.0, 5.0, 1.0, 1.0, 1.0]])
    for num_candidates in (1, 3, 4, 256):
        rows = [make_row(SamplingParams(top_k=3, temperature=5.0), seed=i) for i in range(200)]
        token_ids, _ = Sampler(num_candidates=num_candidates).sample(logits.expand(200, -1), rows)
        assert set(token_ids) == {0, 1, 2}


def test_top_p_keeps_the_token_that_reaches_the_mass_and_at_least_one() -> None:
    logits = torch.tensor([0.5, 0.3, 0.2]).log()
    for top_p, expected in ((0.1, {0}), (0.49, {0}), (0.51, {0, 1}), (0.81, {0, 1, 2})):
        rows = [make_row(SamplingParams(top_p=top_p), seed=i) for i in range(200)]
        assert set(Sampler().sample(logits.expand(200, -1), rows)[0]) == expected


def test_top_p_and_min_p_include_what_lies_exactly_on_the_threshold() -> None:
    logits = torch.tensor([0.0, 9.0, 9.0]).expand(50, -1)
    for params, expected in (
        (SamplingParams(top_p=0.5, temperature=0.01), {1}),  # one of two reaches the half
        (SamplingParams(min_p=1.0), {1, 2}),
    ):
        rows = [make_row(params, seed=i) for i in range(50)]
        assert set(Sampler().sample(logits, rows)[0]) == expected


def test_the_ends_of_the_unit_interval_choose_tokens_that_have_weight(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = torch.tensor([[-math.inf, 0.0, 0.0, -math.inf]])
    for uniform, expected in ((0.0, 1), (1.0 - 2.0**-53, 2)):
        ends = np.array([uniform])
        monkeypatch.setattr("models.engine.sampler.uniforms", lambda *_, ends=ends: ends)
        for params in (SamplingParams(), SamplingParams(top_p=0.99), SamplingParams(top_k=3)):
            assert Sampler().sample(logits, [make_row(params)])[0] == [expected]


def test_the_last_number_below_one_chooses_the_last_token_where_totals_exceed_53_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    last = np.array([1.0 - 2.0**-53])
    monkeypatch.setattr("models.engine.sampler.uniforms", lambda *_: last)
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        logits = torch.randn(1, 20_000, generator=generator) / 10
        logits[0, -1] = -math.inf
        assert Sampler().sample(logits, [make_row(SamplingParams())])[0] == [19_998]


def test_a_bias_of_minus_100_bans_a_token_and_of_plus_100_forces_it() -> None:
    logits = torch.tensor([20.0, 0.0, 0.0]).expand(500, -1)
    banned = [make_row(SamplingParams(logit_bias={0: -100.0}), seed=i) for i in range(500)]
    assert set(Sampler().sample(logits, banned)[0]) == {1, 2}
    forced = [make_row(SamplingParams(logit_bias={2: 100.0}), seed=i) for i in range(500)]
    assert set(Sampler().sample(logits, forced)[0]) == {2}


def test_forbidden_tokens_are_never_chosen() -> None:
    params = SamplingParams(temperature=0.0)
    logits = torch.tensor([[3.0, 2.0, 1.0]])
    assert Sampler().sample(logits, [make_row(params, forbidden=(0, 1))])[0] == [2]


def test_a_temperature_below_the_least_is_the_least() -> None:
    logits = torch.tensor([0.005, 0.0]).expand(300, -1)
    tiny = [make_row(SamplingParams(temperature=1e-9), seed=i) for i in range(300)]
    least = [replace(row, params=SamplingParams(temperature=MIN_TEMPERATURE)) for row in tiny]
    chosen = Sampler().sample(logits, tiny)[0]
    assert chosen == Sampler().sample(logits, least)[0]
    assert set(chosen) == {0, 1}


def test_an_empty_batch_chooses_nothing() -> None:
    assert Sampler().sample(torch.empty(0, 10), []) == ([], [])


@pytest.mark.parametrize("bad", ["one nan", "one inf", "all minus inf"])
def test_a_broken_row_is_named_and_the_others_keep_their_tokens(bad: str) -> None:
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(),
        SamplingParams(top_k=2),
        SamplingParams(top_p=0.9),
        SamplingParams(top_k=9),
        SamplingParams(min_p=0.1),
    ]
    logits = torch.randn(12, 16, generator=torch.Generator().manual_seed(0))
    rows = [make_row(kinds[i // 2], seed=i) for i in range(12)]
    sampler = Sampler(num_candidates=4)
    expected, _ = sampler.sample(logits, rows)
    broken = list(range(1, 12, 2))
    if bad == "all minus inf":
        logits[broken] = -math.inf
    else:
        logits[broken, 5] = math.nan if bad == "one nan" else math.inf
    with pytest.raises(NonFiniteLogitsError, match="rows") as caught:
        sampler.sample(logits, rows)
    assert caught.value.row_indices == broken
    assert caught.value.token_ids[::2] == expected[::2]
    assert len(caught.value.logprobs) == 12


def test_logprobs_are_of_the_raw_distribution_and_only_where_asked_for() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(3)) * 4
    best = int(logits[0].argmax())
    params = SamplingParams(
        temperature=0.3, top_k=5, logit_bias={best: -100.0, 7: 100.0}, logprobs=3
    )
    rows = [make_row(params), make_row(SamplingParams()), make_row(SamplingParams(logprobs=0))]
    token_ids, logprobs = Sampler().sample(logits, rows)
    raw = logits.log_softmax(-1)
    first, second, third = logprobs
    assert token_ids[0] == 7
    assert first is not None
    assert first.logprob == pytest.approx(raw[0, 7].item(), abs=1e-6)
    assert first.rank == int((raw[0] > raw[0, 7]).sum()) + 1
    assert first.top_token_ids == raw[0].topk(3).indices.tolist()
    assert first.top_logprobs == pytest.approx(raw[0].topk(3).values.tolist(), abs=1e-6)
    assert second is None
    assert third is not None
    assert (third.top_token_ids, third.top_logprobs) == ([], [])
    assert third.logprob == pytest.approx(raw[2, token_ids[2]].item(), abs=1e-6)


@settings(max_examples=100)
@given(
    st.lists(st.tuples(logit_rows, st.integers(0, 23)), min_size=1, max_size=5), st.integers(0, 24)
)
def test_token_logprobs_equal_log_softmax_with_rank_and_true_top(
    batch: list[tuple[list[float], int]], num_top: int
) -> None:
    logits = torch.tensor([row for row, _ in batch])
    targets = [target for _, target in batch]
    raw = logits.log_softmax(-1)
    for index, entry in enumerate(token_logprobs(logits, targets, num_top)):
        values = logits[index].tolist()
        target_value = values[targets[index]]
        assert entry.logprob == pytest.approx(raw[index, targets[index]].item(), abs=1e-6)
        assert entry.rank == 1 + sum(value > target_value for value in values)
        assert [values[i] for i in entry.top_token_ids] == sorted(values)[::-1][:num_top]
        assert len(set(entry.top_token_ids)) == num_top
        top = raw[index, entry.top_token_ids].tolist()
        assert entry.top_logprobs == pytest.approx(top, abs=1e-6)


def test_the_best_logprob_is_the_greedy_token_even_among_equals() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0, 0.0, 4.0]])
    params = SamplingParams(temperature=0.0, logprobs=2)
    token_ids, logprobs = Sampler().sample(logits, [make_row(params)])
    assert token_ids == [1]
    assert logprobs[0] is not None
    assert logprobs[0].top_token_ids == [1, 2]
    assert logprobs[0].rank == 1


def test_many_positions_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(10, 7, generator=torch.Generator().manual_seed(2))
    whole = token_logprobs(logits, [*range(7), 0, 1, 2], 3)
    monkeypatch.setattr("models.engine.sampler._MAX_LOGPROB_ELEMENTS", 21)
    assert token_logprobs(logits, [*range(7), 0, 1, 2], 3) == whole
