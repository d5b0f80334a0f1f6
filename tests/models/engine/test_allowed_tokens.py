"""Masks mean the same, whether a row is narrowed to its tokens or the others are forbidden."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from cluster.types import SamplingParams
from models.engine.allowed_tokens import few_tokens, forbid_unmasked
from models.engine.sampler import NonFiniteLogitsError, Sampler
from models.engine.step_inputs import SamplingRow

VOCAB_SIZE = 5000  # not a multiple of 32


def masks_of(*allowed: list[int]) -> NDArray[np.int32]:
    bits = np.zeros((len(allowed), -(-VOCAB_SIZE // 32) * 32), dtype=np.uint8)
    for row, token_ids in enumerate(allowed):
        bits[row, token_ids] = 1
    return np.packbits(bits, axis=1, bitorder="little").view(np.int32)


def draw(generator: np.random.Generator, count: int) -> list[int]:
    return sorted(generator.choice(VOCAB_SIZE, count, replace=False).tolist())


def test_few_tokens_names_exactly_the_allowed_tokens_of_the_rows_that_have_few() -> None:
    generator = np.random.default_rng(0)
    allowed = [draw(generator, count) for count in (1, 40, 4000, 0, 7)] + [[0, 31, 32, 4999]]
    few = few_tokens({3: 0, 5: 1, 6: 2, 8: 3, 9: 4, 11: 5}, masks_of(*allowed))
    assert few.rows == [3, 5, 8, 9, 11]
    listed = [
        token_ids[~is_padding].tolist()
        for token_ids, is_padding in zip(few.token_ids_NC, few.is_padding_NC, strict=True)
    ]
    assert listed == [allowed[0], allowed[1], allowed[3], allowed[4], allowed[5]]


def test_logits_of_few_tokens_are_those_of_their_own_rows() -> None:
    logits = torch.arange(3 * VOCAB_SIZE, dtype=torch.float32).view(3, -1)
    few = few_tokens({0: 1, 2: 0}, masks_of([7, 9], [4999]))
    assert few.logits(logits).tolist() == [
        [4999.0, -torch.inf],
        [2 * VOCAB_SIZE + 7, 2 * VOCAB_SIZE + 9],
    ]


def test_forbidding_leaves_the_allowed_tokens_and_the_rows_without_a_mask() -> None:
    logits = torch.zeros(3, VOCAB_SIZE)
    forbid_unmasked(logits, {0: 1, 2: 0}, masks_of([1, 4998], [3]))
    assert [row.isfinite().nonzero()[:, 0].tolist() for row in logits] == [
        [3],
        list(range(VOCAB_SIZE)),
        [1, 4998],
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_with_masks_choose_as_if_other_tokens_were_impossible(dtype: torch.dtype) -> None:
    generator = np.random.default_rng(1)
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=0.8),
        SamplingParams(temperature=1.2, top_k=5),
        SamplingParams(top_p=0.7),
        SamplingParams(top_p=0.9, top_k=300),
        SamplingParams(min_p=0.2),
        SamplingParams(logit_bias={17: 40.0}, temperature=0.5),
    ]
    counts = [1, 2, 30, 300, 2000, 4500, None]
    pairs = [(kind, count) for kind in kinds for count in counts]
    allowed = [draw(generator, count) for _, count in pairs if count is not None]
    mask_row = iter(range(len(allowed)))
    rows = [
        SamplingRow(
            params=params,
            seed=number,
            position=number,
            prompt_token_ids=[],
            output_token_ids=[],
            mask_row=None if count is None else next(mask_row),
        )
        for number, (params, count) in enumerate(pairs)
    ]
    logits = torch.from_numpy(generator.normal(0, 3, (len(rows), VOCAB_SIZE))).to(dtype)
    impossible = logits.clone()
    for index, row in enumerate(rows):
        if row.mask_row is not None:
            is_forbidden = torch.ones(VOCAB_SIZE, dtype=torch.bool)
            is_forbidden[allowed[row.mask_row]] = False
            impossible[index, is_forbidden] = -torch.inf
    expected, _ = Sampler().sample(impossible, rows)
    before = logits.clone()
    chosen, _ = Sampler().sample(logits, rows, masks_of(*allowed))
    assert chosen == expected
    assert torch.equal(logits, before)


def test_a_row_whose_mask_allows_nothing_fails_alone() -> None:
    rows = [
        SamplingRow(
            params=SamplingParams(temperature=0.0),
            seed=0,
            prompt_token_ids=[],
            output_token_ids=[],
            mask_row=mask_row,
        )
        for mask_row in (0, None, 1)
    ]
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 12] = 1.0
    with pytest.raises(NonFiniteLogitsError) as caught:
        Sampler().sample(logits, rows, masks_of([], [12, 13]))
    assert caught.value.row_indices == [0]
    assert caught.value.token_ids[1:] == [12, 12]
