"""The best next tokens of beams.

Shapes: R = rows of beams, V = vocabulary, C = candidates.
"""

from collections.abc import Sequence as AbstractSequence

import numpy as np
import torch
from numpy.typing import NDArray

from models.engine.logit_edits import edit_logits
from models.engine.step_inputs import BeamCandidates, SamplingRow, StepInputs


def beam_candidates(
    logits_RV: torch.Tensor,
    rows: AbstractSequence[SamplingRow],
    grammar_masks: NDArray[np.int32] | None = None,
) -> list[BeamCandidates]:
    """Rank each row's tokens by its edited log-softmax, in float32.

    Edits (bias, penalties, bans, grammar) apply to log-probabilities, as transformers applies its
    logits processors in beam search. Tokens that are banned are never candidates, so there may be
    fewer than asked for.
    """
    logprobs_RV = logits_RV.to(torch.float32).log_softmax(dim=-1)
    scores_RV = edit_logits(logprobs_RV, rows, grammar_masks)
    count = min(max(row.num_candidates for row in rows), logits_RV.shape[1])
    scores_RC, ids_RC = scores_RV.topk(count, dim=-1)
    raw_RC = logprobs_RV.gather(-1, ids_RC)
    results = []
    for row, ids, scores, raw in zip(
        rows, ids_RC.tolist(), scores_RC.tolist(), raw_RC.tolist(), strict=True
    ):
        num_kept = sum(score > float("-inf") for score in scores[: row.num_candidates])
        results.append(
            BeamCandidates(
                token_ids=ids[:num_kept], scores=scores[:num_kept], logprobs=raw[:num_kept]
            )
        )
    return results


def candidates_by_row(logits_RV: torch.Tensor, inputs: StepInputs) -> dict[int, BeamCandidates]:
    """Of the step's rows that want candidates; `logits_RV` are those of all rows."""
    rows = inputs.sampling_rows
    wanted = [index for index, row in enumerate(rows) if row.num_candidates]
    if not wanted:
        return {}
    found = beam_candidates(
        logits_RV[wanted], [rows[index] for index in wanted], inputs.grammar_masks
    )
    return dict(zip(wanted, found, strict=True))
