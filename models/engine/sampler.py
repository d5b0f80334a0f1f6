"""Choosing tokens: one batched sampler for rows that each want something else.

The choice of a row is a pure function of its logits, its parameters, its seed and its position.
To keep it so whatever else is in the batch, probabilities become integers: a token weighs
floor(2**40 * p / p_max), and sums of integers do not depend on the order of addition. A token
that is 2**40 times less likely than the best one is therefore never chosen. Tokens are ordered by
falling logit, and equal logits by rising id, as torch.argmax orders them.

Shapes: R = rows, V = vocabulary, G = rows of a group that is treated alike, C = candidates.
"""

from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass
from enum import Enum, IntEnum, auto
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cluster.types import SamplingParams, TokenLogprobs
from models.engine.allowed_tokens import few_tokens, forbid_unmasked
from models.engine.logit_edits import edit_logits, mask_rows
from models.engine.randomness import uniforms
from models.engine.step_inputs import SamplingRow
from models.engine.transfers import Download, upload
from models.native.operations import row_maxima

# A lower temperature than this, but not 0, is taken for this (as in vLLM): dividing by less gains
# nothing over greedy and loses precision.
MIN_TEMPERATURE = 0.01

_WEIGHT_ONE = 2.0**40  # V * 2**40 stays far below 2**63
_MAX_LOGPROB_ELEMENTS = 2**24  # 64 MiB of float32 at a time
# Rows are chosen from in parts of this many logits on a CPU: what stays in its caches takes a third
# of the time.
_MAX_CPU_ELEMENTS = 2**17
_SPARE_TOP = 8  # so that ties with the last of the top logprobs are rarely cut arbitrarily


class ChooseTokens(Protocol):
    """Kernels that choose for rows that are not greedy: see `models.triton.sampling`."""

    def __call__(
        self, logits_GV: torch.Tensor, knobs_5G: torch.Tensor, *, is_ranked: bool
    ) -> torch.Tensor:
        """Token ids and `_Outcome`s, [2, G]."""
        ...


class NonFiniteLogitsError(FloatingPointError):
    """Rows that no token could be chosen for: NaN, +inf, or every token at -inf.

    The other rows were sampled all the same: `token_ids` and `logprobs` are what `sample` would
    have returned, and mean nothing at `row_indices`.
    """

    def __init__(
        self,
        row_indices: list[int],
        token_ids: list[int],
        logprobs: list[TokenLogprobs | None],
    ) -> None:
        super().__init__(f"no finite logit to choose in rows {row_indices}")
        self.row_indices = row_indices
        self.token_ids = token_ids
        self.logprobs = logprobs


class Sampler:
    """Samples a batch of rows; keeps nothing between calls."""

    def __init__(
        self, *, num_candidates: int = 256, choose_tokens: ChooseTokens | None = None
    ) -> None:
        """`num_candidates` is how many of the best tokens a row with top_k or top_p looks at
        before all of its tokens are sorted; it changes the time, never the choice. With
        `choose_tokens` nothing is sorted: see `models.triton.sampling`."""
        if num_candidates < 1:
            raise ValueError(f"num_candidates must be at least 1, not {num_candidates}")
        self._num_candidates = num_candidates
        self._choose_tokens = choose_tokens

    def sample(
        self,
        logits_RV: torch.Tensor,
        rows: AbstractSequence[SamplingRow],
        grammar_masks: NDArray[np.int32] | None = None,
    ) -> tuple[list[int], list[TokenLogprobs | None]]:
        """Choose one token per row; row r of the logits belongs to `rows[r]`.

        In this order: logit_bias, penalties, forbidden tokens, grammar; temperature, min_p, top_k,
        top_p, each on what the ones before it left, renormalised. Logprobs are of the raw logits.
        `logits_RV` has any float dtype and does not change; the arithmetic is float32.
        Raises NonFiniteLogitsError after all other rows have their token.
        """
        assert logits_RV.shape[0] == len(rows), "one row of logits per sampling row"
        if not rows:
            return [], []
        edited_RV = edit_logits(logits_RV, rows)
        if grammar_masks is None:
            token_ids, failed_rows = self._choose(edited_RV, rows)
        else:
            token_ids, failed_rows = self._choose_allowed(edited_RV, rows, grammar_masks)
        logprobs = _logprobs_of_rows(logits_RV, rows, token_ids)
        if failed_rows:
            raise NonFiniteLogitsError(failed_rows, token_ids, logprobs)
        return token_ids, logprobs

    def _choose_allowed(
        self,
        logits_RV: torch.Tensor,
        rows: AbstractSequence[SamplingRow],
        masks_GW: NDArray[np.int32],
    ) -> tuple[list[int], list[int]]:
        """As `_choose`, where some rows have a mask. To forget the tokens that it forbids, or to
        make them impossible, is the same: they weigh nothing, and the order of the others stays.
        """
        masked = mask_rows(rows)
        few = few_tokens(masked, masks_GW)
        token_ids = [0] * len(rows)
        failed_rows: list[int] = []
        if few.rows:
            columns, failed = self._choose(few.logits(logits_RV), [rows[i] for i in few.rows])
            chosen = few.token_ids_NC[range(len(columns)), columns].tolist()
            for index, token_id in zip(few.rows, chosen, strict=True):
                token_ids[index] = token_id
            failed_rows += [few.rows[place] for place in failed]
        others = sorted(set(range(len(rows))).difference(few.rows))
        if others:
            others_OV = logits_RV.index_select(0, upload(np.array(others), logits_RV.device))
            wide = {place: masked[i] for place, i in enumerate(others) if i in masked}
            if wide:
                forbid_unmasked(others_OV, wide, masks_GW)
            chosen, failed = self._choose(others_OV, [rows[i] for i in others])
            for index, token_id in zip(others, chosen, strict=True):
                token_ids[index] = token_id
            failed_rows += [others[place] for place in failed]
        return token_ids, sorted(failed_rows)

    def draw(self, logits_RV: torch.Tensor, rows: AbstractSequence[SamplingRow]) -> "Draw":
        """As `sample` for rows without grammars that want no logprobs, without waiting."""
        return Draw(self, edit_logits(logits_RV, rows), rows)

    def _choose(
        self, logits_RV: torch.Tensor, rows: AbstractSequence[SamplingRow]
    ) -> tuple[list[int], list[int]]:
        """The chosen tokens, and the rows that have no finite logit."""
        return Draw(self, logits_RV, rows).result()

    def group_rows(
        self, rows: AbstractSequence[SamplingRow], vocab_size: int
    ) -> dict["_Method", list[int]]:
        """Rows whose tokens are found alike."""
        groups: dict[_Method, list[int]] = {}
        for index, row in enumerate(rows):
            method = _method(row.params, vocab_size, self._num_candidates)
            if self._choose_tokens is not None and method in (_Method.TOP_K, _Method.TOP_P):
                method = _Method.SORT  # or what replaces it
            groups.setdefault(method, []).append(index)
        return groups

    def choose_groups(
        self,
        groups: dict["_Method", list[int]],
        logits_RV: torch.Tensor,
        rows: AbstractSequence[SamplingRow],
    ) -> torch.Tensor:
        """Token ids and `_Outcome`s, [2, rows of all groups], group by group."""
        choices = [
            part
            for method, indices in groups.items()
            for part in self._choose_group(
                method, _pick(logits_RV, indices), [rows[i] for i in indices]
            )
        ]
        return torch.cat(choices, dim=1)

    def _choose_group(
        self, method: "_Method", logits_GV: torch.Tensor, rows: AbstractSequence[SamplingRow]
    ) -> Iterator[torch.Tensor]:
        """Token ids and `_Outcome`s, [2, G], in parts along G."""
        if method is _Method.GREEDY:
            yield _choose_greedy(logits_GV)
            return
        table_5G = _knob_table(rows, logits_GV)
        if self._choose_tokens is not None:
            yield self._choose_tokens(logits_GV, table_5G, is_ranked=method is not _Method.WHOLE)
            return
        knobs = _Knobs.of(table_5G, has_min_p=any(row.params.min_p for row in rows))
        num_rows = len(rows)
        if logits_GV.device.type == "cpu":
            num_rows = max(1, _MAX_CPU_ELEMENTS // logits_GV.shape[1])
        for start in range(0, len(rows), num_rows):
            part = slice(start, start + num_rows)
            yield self._choose_part(method, logits_GV[part].to(torch.float32), knobs.of_rows(part))

    def _choose_part(
        self, method: "_Method", values_GV: torch.Tensor, knobs: "_Knobs"
    ) -> torch.Tensor:
        if method is _Method.WHOLE:
            return _choose_from_whole(values_GV, knobs)
        if method is _Method.SORT:
            ranked_GV, ids_GV = values_GV.sort(dim=-1, descending=True, stable=True)
            token_ids_G, _ = _choose_from_ranked(ranked_GV, ids_GV, knobs)
            return torch.stack([token_ids_G, _outcomes(ranked_GV[:, 0])])
        ranked_GC, ids_GC = _best(values_GV, self._num_candidates)
        mass_G1 = None
        if method is _Method.TOP_P:
            mass_G1 = _weights(values_GV, ranked_GC[:, :1], knobs).sum(dim=-1, keepdim=True)
        token_ids_G, is_settled_G = _choose_from_ranked(ranked_GC, ids_GC, knobs, mass_G1=mass_G1)
        outcomes_G = _outcomes(ranked_GC[:, 0]).masked_fill(~is_settled_G, _Outcome.NEEDS_SORT)
        return torch.stack([token_ids_G, outcomes_G])


class Draw:
    """Tokens that are being chosen on the device."""

    def __init__(
        self, sampler: Sampler, logits_RV: torch.Tensor, rows: AbstractSequence[SamplingRow]
    ) -> None:
        self._sampler = sampler
        self._logits_RV = logits_RV
        self._rows = rows
        self._groups = sampler.group_rows(rows, logits_RV.shape[1])
        self._choices_2R = sampler.choose_groups(self._groups, logits_RV, rows)
        self._download = Download(self._choices_2R)
        self.is_settled = True  # after `result`: whether the first choice was the last

    def keep(self) -> torch.Tensor:
        """The tokens [R], which may be settled otherwise; the logits may be overwritten then."""
        if not self._groups.keys() <= {_Method.GREEDY, _Method.WHOLE, _Method.SORT}:
            self._logits_RV = self._logits_RV.clone()
        token_ids_R = self._choices_2R[0]
        if len(self._groups) == 1:
            return token_ids_R
        order = np.concatenate([np.array(indices) for indices in self._groups.values()])
        return token_ids_R.index_select(0, upload(np.argsort(order), token_ids_R.device))

    def result(self) -> tuple[list[int], list[int]]:
        """The tokens, and the rows that have no finite logit. The only wait for the device."""
        token_ids = [0] * len(self._rows)
        failed_rows: list[int] = []
        groups, download = self._groups, self._download
        while groups:
            chosen, outcomes = download.read().tolist()
            order = [index for indices in groups.values() for index in indices]
            unsettled: list[int] = []
            for index, token_id, outcome in zip(order, chosen, outcomes, strict=True):
                token_ids[index] = token_id
                if outcome == _Outcome.NOT_FINITE:
                    failed_rows.append(index)
                elif outcome == _Outcome.NEEDS_SORT:
                    unsettled.append(index)
            groups = {_Method.SORT: unsettled} if unsettled else {}
            if groups:
                self.is_settled = False
                download = Download(
                    self._sampler.choose_groups(groups, self._logits_RV, self._rows)
                )
        return token_ids, sorted(failed_rows)


def token_logprobs(
    logits_NV: torch.Tensor, target_token_ids: AbstractSequence[int], num_top: int
) -> list[TokenLogprobs]:
    """Log-softmax of raw logits at one target per row, and at each row's `num_top` best tokens.

    Float32 whatever the logits' dtype. Equal logits are listed by rising id (if more than a few
    tie with the last one listed, any of them may be); a target's rank is 1 + the number of tokens
    with a larger logit.
    """
    assert logits_NV.shape[0] == len(target_token_ids), "one target per row"
    rows_per_part = max(1, _MAX_LOGPROB_ELEMENTS // logits_NV.shape[1])
    targets_N1 = upload(np.array(target_token_ids, dtype=np.int64), logits_NV.device)[:, None]
    result: list[TokenLogprobs] = []
    for start in range(0, len(target_token_ids), rows_per_part):
        part = slice(start, start + rows_per_part)
        result += _part_logprobs(logits_NV[part].to(torch.float32), targets_N1[part], num_top)
    return result


class _Method(Enum):
    """How the token of a row is found; a row that needs no order pays for none."""

    GREEDY = auto()  # the best token
    WHOLE = auto()  # from all tokens, unordered
    TOP_K = auto()  # from the best candidates: top_k is below their number
    TOP_P = auto()  # from the best candidates, if they hold the mass
    SORT = auto()  # from all tokens, ordered


class _Outcome(IntEnum):
    CHOSEN = 0
    NOT_FINITE = 1
    NEEDS_SORT = 2


def _method(params: SamplingParams, vocab_size: int, num_candidates: int) -> _Method:
    if params.temperature == 0.0 or params.top_k == 1:
        return _Method.GREEDY
    is_top_k_on = 0 < params.top_k < vocab_size
    if not is_top_k_on and params.top_p >= 1.0:
        return _Method.WHOLE
    if num_candidates >= vocab_size or params.top_k >= num_candidates:
        return _Method.SORT
    return _Method.TOP_K if is_top_k_on else _Method.TOP_P


@dataclass(frozen=True, slots=True, kw_only=True)
class _Knobs:
    """The parameters of a group as columns on the device, each [G, 1]."""

    temperature: torch.Tensor  # float32
    min_p: torch.Tensor | None  # float32; None when no row has one
    top_k: torch.Tensor  # V where it is off
    top_p: torch.Tensor
    uniform: torch.Tensor

    @classmethod
    def of(cls, table_5G: torch.Tensor, *, has_min_p: bool) -> "_Knobs":
        temperature, min_p, top_k, top_p, uniform = table_5G[:, :, None]
        return cls(
            temperature=temperature.float(),
            min_p=min_p.float() if has_min_p else None,
            top_k=top_k,
            top_p=top_p,
            uniform=uniform,
        )

    def of_rows(self, part: slice) -> "_Knobs":
        return _Knobs(
            temperature=self.temperature[part],
            min_p=None if self.min_p is None else self.min_p[part],
            top_k=self.top_k[part],
            top_p=self.top_p[part],
            uniform=self.uniform[part],
        )


def _knob_table(rows: AbstractSequence[SamplingRow], values_GV: torch.Tensor) -> torch.Tensor:
    """Temperature, min_p, top_k, top_p and uniform number of each row, float64 [5, G]."""
    vocab_size = values_GV.shape[1]
    columns = [
        [max(row.params.temperature, MIN_TEMPERATURE) for row in rows],
        [row.params.min_p for row in rows],
        [row.params.top_k if row.params.top_k > 0 else vocab_size for row in rows],
        [row.params.top_p for row in rows],
        uniforms([row.seed for row in rows], [row.position for row in rows]),
    ]
    return upload(np.array(columns, dtype=np.float64), values_GV.device)


def _pick(logits_RV: torch.Tensor, indices: list[int]) -> torch.Tensor:
    """The rows at rising indices; no copy when it is all of them."""
    if len(indices) == logits_RV.shape[0]:
        return logits_RV
    return logits_RV.index_select(0, upload(np.array(indices), logits_RV.device))


def _choose_greedy(logits_GV: torch.Tensor) -> torch.Tensor:
    top_G, token_ids_G = row_maxima(logits_GV)  # the lowest id among equals; NaN above all
    return torch.stack([token_ids_G, _outcomes(top_G)])


def _choose_from_whole(values_GV: torch.Tensor, knobs: _Knobs) -> torch.Tensor:
    top_G1 = values_GV.amax(dim=-1, keepdim=True)
    cdf_GV = _weights(values_GV, top_G1, knobs).cumsum(dim=-1)
    token_ids_G1 = _invert(cdf_GV, cdf_GV[:, -1:], knobs.uniform)
    return torch.stack([token_ids_G1[:, 0], _outcomes(top_G1[:, 0])])


def _choose_from_ranked(
    ranked_GC: torch.Tensor,
    ids_GC: torch.Tensor,
    knobs: _Knobs,
    *,
    mass_G1: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Choose from each row's C best tokens, which are in order: token ids, and which are settled.

    `mass_G1` is the weight of all tokens that top_p counts, where that is more than the C best.
    A row is settled when no token outside of its candidates can belong to those it keeps: the
    last one kept is above the last candidate, or that one has no weight.
    """
    num_candidates = ranked_GC.shape[1]
    weights_GC = _weights(ranked_GC, ranked_GC[:, :1], knobs)
    has_all_weight_G1 = weights_GC[:, -1:] == 0
    ranks_C = torch.arange(num_candidates, device=ranked_GC.device)
    cdf_GC = weights_GC.masked_fill_(ranks_C >= knobs.top_k, 0).cumsum(dim=-1)
    if mass_G1 is None:
        mass_G1 = cdf_GC[:, -1:]
    # The smallest set that holds top_p of the mass ends with the first token that reaches it.
    last_G1 = (cdf_GC < knobs.top_p * mass_G1).sum(dim=-1, keepdim=True)
    last_G1 = last_G1.clamp_(max=num_candidates - 1)
    is_settled_G1 = (ranked_GC.gather(-1, last_G1) > ranked_GC[:, -1:]) | has_all_weight_G1
    choice_G1 = _invert(cdf_GC, cdf_GC.gather(-1, last_G1), knobs.uniform)
    return ids_GC.gather(-1, choice_G1)[:, 0], is_settled_G1[:, 0]


def _outcomes(top_G: torch.Tensor) -> torch.Tensor:
    """CHOSEN or NOT_FINITE by a row's largest logit, which is NaN if any of them is."""
    return torch.where(top_G.isfinite(), int(_Outcome.CHOSEN), int(_Outcome.NOT_FINITE))


def _best(values_GV: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The `count` largest values and their ids, by falling value, then by rising id.

    Which of several values equal to the last one are among them is not defined.
    """
    ids_GC = values_GV.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    ranked_GC, order_GC = values_GV.gather(-1, ids_GC).sort(dim=-1, descending=True, stable=True)
    return ranked_GC, ids_GC.gather(-1, order_GC)


def _weights(values_GN: torch.Tensor, top_G1: torch.Tensor, knobs: _Knobs) -> torch.Tensor:
    """Integer weights after temperature and min_p; the best token of a row weighs 2**40."""
    relative_GN = (values_GN - top_G1).div_(knobs.temperature).exp_()
    if knobs.min_p is not None:
        relative_GN.masked_fill_(relative_GN < knobs.min_p, 0.0)
    return relative_GN.mul_(_WEIGHT_ONE).to(torch.int64)


def _invert(cdf_GN: torch.Tensor, total_G1: torch.Tensor, uniform_G1: torch.Tensor) -> torch.Tensor:
    """The first index whose cumulative weight exceeds the drawn share of the total."""
    # At most 1 - 2**-53, so that even the rounded product stays below the total.
    threshold_G1 = (uniform_G1 * total_G1).to(torch.int64)
    # Rows with NaN have no order: their index means nothing, but has to be one.
    return torch.searchsorted(cdf_GN, threshold_G1, right=True).clamp_(max=cdf_GN.shape[1] - 1)


def _logprobs_of_rows(
    logits_RV: torch.Tensor, rows: AbstractSequence[SamplingRow], token_ids: list[int]
) -> list[TokenLogprobs | None]:
    result: list[TokenLogprobs | None] = [None] * len(rows)
    asked = [(index, row.params.logprobs) for index, row in enumerate(rows)]
    counts = {index: num_top for index, num_top in asked if num_top is not None}
    if not counts:
        return result
    wanted = list(counts)
    logits_NV = _pick(logits_RV, wanted)
    full = token_logprobs(logits_NV, [token_ids[i] for i in wanted], max(counts.values()))
    for index, entry in zip(wanted, full, strict=True):
        num_top = counts[index]
        result[index] = TokenLogprobs(
            logprob=entry.logprob,
            top_token_ids=entry.top_token_ids[:num_top],
            top_logprobs=entry.top_logprobs[:num_top],
            rank=entry.rank,
        )
    return result


def _part_logprobs(
    values_NV: torch.Tensor, targets_N1: torch.Tensor, num_top: int
) -> list[TokenLogprobs]:
    top_N1 = values_NV.amax(dim=-1, keepdim=True)
    log_sum_N1 = (values_NV - top_N1).exp_().sum(dim=-1, keepdim=True).log_()
    target_N1 = values_NV.gather(-1, targets_N1)
    ranks_N1 = (values_NV > target_N1).sum(dim=-1, keepdim=True) + 1
    num_ranked = min(num_top + _SPARE_TOP, values_NV.shape[1])
    best_NK, ids_NK = (part[:, :num_top] for part in _best(values_NV, num_ranked))
    # Subtracted in this order, as log_softmax does it: the sum of both would be rounded first.
    logprobs_N1K = Download(torch.cat([target_N1, best_NK], dim=1) - top_N1 - log_sum_N1)
    integers = Download(torch.cat([ranks_N1, ids_NK], dim=1)).read().tolist()
    logprobs = logprobs_N1K.read().tolist()
    return [
        TokenLogprobs(logprob=logprob, top_token_ids=top_ids, top_logprobs=top_logprobs, rank=rank)
        for (logprob, *top_logprobs), (rank, *top_ids) in zip(logprobs, integers, strict=True)
    ]
