"""What a request changes about its logits before a token is chosen: bias, penalties, bans, grammar.

Only the (row, token) pairs that occur are touched: no count matrix over the vocabulary, and
nothing is kept between steps.

Shapes: R = rows, V = vocabulary, N = edited (row, token) pairs.
"""

from collections.abc import Sequence as AbstractSequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from models.engine.allowed_tokens import forbid_unmasked
from models.engine.step_inputs import SamplingRow
from models.engine.transfers import upload


def edit_logits(
    logits_RV: torch.Tensor,
    rows: AbstractSequence[SamplingRow],
    grammar_masks: NDArray[np.int32] | None = None,
) -> torch.Tensor:
    """Apply, in this order: logit_bias, repetition, frequency and presence penalties, bans, and
    the grammars' masks (see `StepInputs.grammar_masks`) where they are given.

    Returns a float32 copy, or `logits_RV` itself, in its own dtype, when no row asks for an edit;
    the argument never changes. Every token id must be below V.
    """
    bias, repetition, counted, banned = _Edits(), _Edits(), _Edits(), _Edits()
    for index, row in enumerate(rows):
        params = row.params
        if params.logit_bias:
            bias.add(index, list(params.logit_bias), list(params.logit_bias.values()))
        _add_penalties(index, row, repetition=repetition, counted=counted)
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
    masked = {} if grammar_masks is None else mask_rows(rows)
    if not steps and not masked:
        return logits_RV
    # Only here, because a copy of the whole batch costs more than all edits together.
    edited_RV = logits_RV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for edits, apply in steps:
        apply(edited_RV.view(-1), *edits.tensors(edited_RV))
    if grammar_masks is not None and masked:
        forbid_unmasked(edited_RV, masked, grammar_masks)
    return edited_RV


def mask_rows(rows: AbstractSequence[SamplingRow]) -> dict[int, int]:
    """Which row of the grammars' masks each row has that has one."""
    return {index: row.mask_row for index, row in enumerate(rows) if row.mask_row is not None}


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

    def tensors(self, logits_RV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Places in the flattened logits, and the numbers, each N long, on the logits' device."""
        token_ids = np.concatenate(self._token_ids)
        vocab_size = logits_RV.shape[1]
        # It would be another row's token, or end the CUDA context and with it every request.
        assert token_ids.min() >= 0, "a token id is negative"
        assert token_ids.max() < vocab_size, "a token id is not in the vocabulary"
        row_starts = np.array(self._rows, dtype=np.int64) * vocab_size
        places = np.repeat(row_starts, [len(ids) for ids in self._token_ids]) + token_ids
        device = logits_RV.device
        return upload(places, device), upload(np.concatenate(self._numbers), device)


def _add_penalties(index: int, row: SamplingRow, *, repetition: _Edits, counted: _Edits) -> None:
    params = row.params
    is_repetition_on = params.repetition_penalty != 1.0
    is_counting_on = params.frequency_penalty != 0.0 or params.presence_penalty != 0.0
    if not (is_repetition_on or is_counting_on):
        return
    output_ids = np.asarray(row.output_token_ids, dtype=np.int64)
    if row.guessed_token_ids:
        output_ids = np.append(output_ids, row.guessed_token_ids)
    if is_repetition_on:
        # A token named twice is written twice with the same value: no need to deduplicate.
        repetition.add(index, row.prompt_token_ids, params.repetition_penalty)
        repetition.add(index, output_ids, params.repetition_penalty)
    if is_counting_on:
        token_ids, counts = np.unique(output_ids, return_counts=True)
        penalties = params.frequency_penalty * counts + params.presence_penalty
        counted.add(index, token_ids, penalties)


# On flattened logits, because index_select and scatter_ take a tenth of the time of [rows, tokens].


def _add(logits: torch.Tensor, places_N: torch.Tensor, bias_N: torch.Tensor) -> None:
    logits.scatter_(0, places_N, logits.index_select(0, places_N) + bias_N)


def _subtract(logits: torch.Tensor, places_N: torch.Tensor, penalties_N: torch.Tensor) -> None:
    _add(logits, places_N, -penalties_N)


def _penalize_repetition(
    logits: torch.Tensor, places_N: torch.Tensor, penalties_N: torch.Tensor
) -> None:
    x_N = logits.index_select(0, places_N)
    x_N = torch.where(x_N > 0, x_N / penalties_N, x_N * penalties_N)
    logits.scatter_(0, places_N, x_N)


def _overwrite(logits: torch.Tensor, places_N: torch.Tensor, values_N: torch.Tensor) -> None:
    logits.scatter_(0, places_N, values_N)
