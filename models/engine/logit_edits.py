"""What a request changes about its logits before a token is chosen: bias, penalties, bans.

Only the (row, token) pairs that occur are touched: no count matrix over the vocabulary, and
nothing is kept between steps.

Shapes: R = rows, V = vocabulary, N = edited (row, token) pairs.
"""

from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.types import SamplingParams
from models.engine.step_inputs import SamplingRow


def edit_logits(logits_RV: torch.Tensor, rows: AbstractSequence[SamplingRow]) -> torch.Tensor:
    """Apply, in this order: logit_bias, repetition, frequency and presence penalties, bans.

    Returns a float32 copy, or `logits_RV` itself, in its own dtype, when no row asks for an edit;
    the argument never changes. Every token id must be below V.
    """
    bias, repetition, counted, banned = _Edits(), _Edits(), _Edits(), _Edits()
    for index, row in enumerate(rows):
        params = row.params
        if params.logit_bias:
            bias.add(index, list(params.logit_bias), list(params.logit_bias.values()))
        if params.repetition_penalty != 1.0:
            # A token named twice is written twice with the same value: no need to deduplicate.
            repetition.add(index, row.prompt_token_ids, params.repetition_penalty)
            repetition.add(index, row.output_token_ids, params.repetition_penalty)
        if params.frequency_penalty or params.presence_penalty:
            counted.add(index, *_count_penalties(row.output_token_ids, params))
        banned.add(index, row.forbidden_token_ids, -np.inf)
    steps = [
        (edits, apply)
        for edits, apply in (
            (bias, _add),
            (repetition, _penalize_repetition),
            (counted, _subtract),
            (banned, _overwrite),
        )
        if edits
    ]
    if not steps:
        return logits_RV
    # Only here, because a copy of the whole batch costs more than all edits together.
    edited_RV = logits_RV.to(torch.float32, copy=True)
    for edits, apply in steps:
        apply(edited_RV, *edits.tensors(edited_RV))
    return edited_RV


class _Edits:
    """Collects (row, token, number) triples and moves them to the device in one go."""

    def __init__(self) -> None:
        self._rows: list[int] = []
        self._token_ids: list[NDArray[np.int64]] = []
        self._numbers: list[NDArray[np.float32]] = []

    def __bool__(self) -> bool:
        return bool(self._rows)

    def add(
        self,
        row: int,
        token_ids: AbstractSequence[int] | NDArray[np.int64],
        numbers: float | AbstractSequence[float] | NDArray[np.floating[Any]],
    ) -> None:
        """`numbers` is one per token, or one for all of them."""
        if len(token_ids):
            ids = np.asarray(token_ids, dtype=np.int64)
            self._rows.append(row)
            self._token_ids.append(ids)
            self._numbers.append(np.broadcast_to(np.asarray(numbers, np.float32), ids.shape))

    def tensors(self, logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows, tokens and numbers, each N long, on the logits' device."""
        token_ids = np.concatenate(self._token_ids)
        # An index that is out of range would end the CUDA context, and with it every request.
        assert token_ids.min() >= 0, "a token id is negative"
        assert token_ids.max() < logits_RV.shape[1], "a token id is not in the vocabulary"
        rows = np.repeat(self._rows, [len(ids) for ids in self._token_ids])
        where_2N = torch.from_numpy(np.stack([rows, token_ids])).to(logits_RV.device)
        numbers_N = torch.from_numpy(np.concatenate(self._numbers)).to(logits_RV.device)
        return where_2N[0], where_2N[1], numbers_N


def _count_penalties(
    output_token_ids: AbstractSequence[int], params: SamplingParams
) -> tuple[NDArray[np.int64], NDArray[np.floating[Any]]]:
    """The distinct tokens of an output, and what is to be subtracted from each one's logit."""
    token_ids, counts = np.unique(np.asarray(output_token_ids, dtype=np.int64), return_counts=True)
    return token_ids, params.frequency_penalty * counts + params.presence_penalty


def _add(
    logits_RV: torch.Tensor, rows_N: torch.Tensor, tokens_N: torch.Tensor, bias_N: torch.Tensor
) -> None:
    logits_RV[rows_N, tokens_N] += bias_N


def _penalize_repetition(
    logits_RV: torch.Tensor, rows_N: torch.Tensor, tokens_N: torch.Tensor, penalties_N: torch.Tensor
) -> None:
    x_N = logits_RV[rows_N, tokens_N]
    logits_RV[rows_N, tokens_N] = torch.where(x_N > 0, x_N / penalties_N, x_N * penalties_N)


def _subtract(
    logits_RV: torch.Tensor, rows_N: torch.Tensor, tokens_N: torch.Tensor, penalties_N: torch.Tensor
) -> None:
    logits_RV[rows_N, tokens_N] -= penalties_N


def _overwrite(
    logits_RV: torch.Tensor, rows_N: torch.Tensor, tokens_N: torch.Tensor, values_N: torch.Tensor
) -> None:
    logits_RV[rows_N, tokens_N] = values_N
