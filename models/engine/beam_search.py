"""Beam search over one prompt: which continuations live on, and which hypotheses are best.

Follows transformers' `generate(num_beams=…)`: at every step the best
`max(2, 1 + end tokens) * width` continuations of all beams are looked at; those that end are
hypotheses if they are among the best `width`, the best `width` of the others go on. A hypothesis
scores sum(logprobs) / generated_tokens ** length_penalty, its end token counted.

Knows numbers and tokens; sequences and blocks are the scheduler's.
"""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass

from cluster.types import BeamParams, FinishReason, TokenLogprobs
from models.engine.step_inputs import BeamCandidates


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamReport:
    """What one beam learned in a step."""

    output_token_ids: list[int]
    score: float  # sum of its tokens' scores
    candidates: BeamCandidates
    logprobs: TokenLogprobs | None  # top logprobs at this position, if asked for
    output_logprobs: list[TokenLogprobs]  # of the tokens so far


@dataclass(frozen=True, slots=True, kw_only=True)
class Continuation:
    """One token more on one beam."""

    parent: int  # index of the beam's report
    token_id: int
    score: float
    logprobs: TokenLogprobs | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hypothesis:
    """An ended beam."""

    output_token_ids: list[int]
    logprobs: list[TokenLogprobs]
    score: float  # with the length penalty
    finish_reason: FinishReason
    stop_token_id: int | None


class BeamSearch:
    """The state of one search. `advance` is called once per token position."""

    def __init__(
        self,
        params: BeamParams,
        *,
        end_token_ids: frozenset[int],
        ends_with_stop_string: Callable[[list[int]], bool],
    ) -> None:
        self._params = params
        self._end_token_ids = end_token_ids
        self._ends_with_stop_string = ends_with_stop_string
        self._hypotheses: list[Hypothesis] = []  # best first, at most `width`
        self.is_finished = False

    @property
    def hypotheses(self) -> list[Hypothesis]:
        """Best first."""
        return self._hypotheses

    def advance(
        self, reports: AbstractSequence[BeamReport], *, is_last_position: bool
    ) -> list[Continuation]:
        """Choose the beams of the next position, best first; none when the search is finished.

        Args:
            is_last_position: no token can follow this one (max_tokens, or the context limit).
        """
        width = self._params.width
        ranked = self._ranked(reports)
        going_on: list[Continuation] = []
        takes_more = not (self._params.early_stopping and len(self._hypotheses) == width)
        for rank, continuation in enumerate(ranked):
            tokens = [*reports[continuation.parent].output_token_ids, continuation.token_id]
            reason = self._end(tokens, is_last_position=is_last_position)
            if reason is None:
                going_on.append(continuation)
            elif rank < width and takes_more:
                self._add(reports[continuation.parent], continuation, tokens, reason)
        going_on = going_on[:width]
        num_generated = len(reports[0].output_token_ids) + 1
        self.is_finished = not going_on or not self._may_improve(going_on[0].score, num_generated)
        return [] if self.is_finished else going_on

    def _ranked(self, reports: AbstractSequence[BeamReport]) -> list[Continuation]:
        """The best continuations of all beams together."""
        continuations = [
            Continuation(
                parent=parent,
                token_id=token_id,
                score=report.score + score,
                logprobs=_chosen(report.logprobs, logprob),
            )
            for parent, report in enumerate(reports)
            for token_id, score, logprob in zip(
                report.candidates.token_ids,
                report.candidates.scores,
                report.candidates.logprobs,
                strict=True,
            )
        ]
        continuations.sort(key=lambda continuation: -continuation.score)
        return continuations[: num_candidates(self._params, self._end_token_ids)]

    def _end(self, tokens: list[int], *, is_last_position: bool) -> FinishReason | None:
        if tokens[-1] in self._end_token_ids or self._ends_with_stop_string(tokens):
            return FinishReason.STOP
        return FinishReason.LENGTH if is_last_position else None

    def _add(
        self,
        report: BeamReport,
        continuation: Continuation,
        tokens: list[int],
        reason: FinishReason,
    ) -> None:
        logprobs = list(report.output_logprobs)
        if continuation.logprobs is not None:
            logprobs.append(continuation.logprobs)
        is_end_token = tokens[-1] in self._end_token_ids
        self._hypotheses.append(
            Hypothesis(
                output_token_ids=tokens,
                logprobs=logprobs,
                score=continuation.score / len(tokens) ** self._params.length_penalty,
                finish_reason=reason,
                stop_token_id=tokens[-1] if is_end_token else None,
            )
        )
        self._hypotheses.sort(key=lambda hypothesis: -hypothesis.score)
        del self._hypotheses[self._params.width :]

    def _may_improve(self, best_running_score: float, num_generated: int) -> bool:
        """Whether the search goes on although `width` hypotheses exist."""
        if len(self._hypotheses) < self._params.width:
            return True
        if self._params.early_stopping:
            return False
        attainable: float = best_running_score / num_generated**self._params.length_penalty
        return attainable > self._hypotheses[-1].score


def num_candidates(params: BeamParams, end_token_ids: frozenset[int]) -> int:
    """Continuations looked at per step: enough that `width` go on when every end token is taken."""
    return max(2, 1 + len(end_token_ids)) * params.width


def _chosen(logprobs: TokenLogprobs | None, logprob: float) -> TokenLogprobs | None:
    if logprobs is None:
        return None
    return TokenLogprobs(
        logprob=logprob,
        top_token_ids=logprobs.top_token_ids,
        top_logprobs=logprobs.top_logprobs,
    )
