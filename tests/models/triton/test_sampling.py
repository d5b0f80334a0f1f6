"""Kernels that sort nothing choose what the sorting sampler chooses."""

import math

import pytest
import torch

from cluster.types import SamplingParams
from models.engine.sampler import NonFiniteLogitsError, Sampler
from models.engine.step_inputs import SamplingRow

pytest.importorskip("triton")

from models.triton.sampling import choose_tokens

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OURS, SORTING = Sampler(choose_tokens=choose_tokens), Sampler()
PARAMS = (
    SamplingParams(temperature=1.0),
    SamplingParams(temperature=0.7, top_p=0.9),
    SamplingParams(temperature=1.3, top_k=5),
    SamplingParams(temperature=1.0, top_k=40, top_p=0.5),
    SamplingParams(temperature=0.9, min_p=0.2),
    SamplingParams(temperature=2.0, top_p=0.999, min_p=0.01),
    SamplingParams(temperature=1e-6, top_p=0.9),
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, top_p=1e-9),
    SamplingParams(temperature=1.0, top_k=1000),
    SamplingParams(temperature=5.0, top_k=257, top_p=0.8, min_p=1e-6),
)


def row(params: SamplingParams, seed: int) -> SamplingRow:
    return SamplingRow(
        logit_index=0,
        params=params,
        seed=seed,
        position=3,
        prompt_token_ids=(),
        output_token_ids=(),
    )


def both(logits_RV: torch.Tensor, rows: list[SamplingRow]) -> tuple[list[int], list[int]]:
    logits_RV = logits_RV.to(DEVICE)
    return OURS.sample(logits_RV, rows)[0], SORTING.sample(logits_RV, rows)[0]


@pytest.mark.parametrize(
    ("vocab_size", "num_rows"), [(7, 33), (257, 33), (1000, 22), (9000, len(PARAMS))]
)
@pytest.mark.parametrize("spread", [0.05, 6.0])
def test_random_rows_of_all_kinds(vocab_size: int, num_rows: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    logits_RV = torch.randn(num_rows, vocab_size, generator=generator) * spread
    rows = [row(PARAMS[index % len(PARAMS)], seed=index) for index in range(num_rows)]
    ours, sorting = both(logits_RV, rows)
    assert ours == sorting


@pytest.mark.parametrize("num_levels", [1, 2, 5])
def test_equal_logits_go_by_rising_id(num_levels: int) -> None:
    """Also where top_k or top_p end between tokens that are equal; in bfloat16 most are."""
    generator = torch.Generator().manual_seed(num_levels)
    levels_RV = torch.randint(num_levels, (33, 300), generator=generator)
    logits_RV = (levels_RV * 0.25).to(torch.bfloat16)
    rows = [row(PARAMS[index % len(PARAMS)], seed=index) for index in range(33)]
    ours, sorting = both(logits_RV, rows)
    assert ours == sorting


def test_forbidden_tokens_are_not_chosen_even_if_top_k_has_room_for_them() -> None:
    logits_RV = torch.full((20, 500), -math.inf)
    logits_RV[:, [3, 250, 499]] = torch.tensor([1.0, 1.0, 0.5])
    params = (SamplingParams(top_k=100), SamplingParams(top_p=0.9), SamplingParams())
    rows = [row(params[index % 3], seed=index) for index in range(20)]
    ours, sorting = both(logits_RV, rows)
    assert ours == sorting
    assert set(ours) == {3, 250, 499}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(top_p=0.5)])
def test_a_row_that_is_not_finite_is_named(bad: float, params: SamplingParams) -> None:
    logits_RV = torch.zeros(3, 300, device=DEVICE)
    logits_RV[1, 299] = bad
    with pytest.raises(NonFiniteLogitsError) as caught:
        OURS.sample(logits_RV, [row(params, seed=index) for index in range(3)])
    assert caught.value.row_indices == [1]
    logits_RV[1] = -math.inf
    with pytest.raises(NonFiniteLogitsError) as caught:
        OURS.sample(logits_RV, [row(params, seed=index) for index in range(3)])
    assert caught.value.row_indices == [1]


def test_rows_of_wider_tensors_are_read_where_they_lie() -> None:
    wide_RV = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    logits_RV = wide_RV[:, :300]
    assert not logits_RV.is_contiguous()
    ours, sorting = both(logits_RV, [row(PARAMS[1], seed=index) for index in range(4)])
    assert ours == sorting
