"""The sequences of one beam search, and what they have learned since its last advance."""

from dataclasses import dataclass

from cluster.types import TokenLogprobs
from models.engine.beam_search import BeamReport, BeamSearch, Continuation
from models.engine.sequence import Sequence
from models.engine.step_inputs import BeamCandidates


@dataclass(frozen=True, slots=True)
class NextBeam:
    """A beam of the next position: a sequence that goes on, or a fork of one."""

    sequence: Sequence
    continuation: Continuation
    is_fork: bool


class BeamGroup:
    """Beams compute on their own and wait for each other: the search advances when all reported."""

    def __init__(self, first: Sequence, search: BeamSearch) -> None:
        self.search = search
        self.beams = [first]
        self._reports: dict[int, BeamReport] = {}  # by the sequence's id()
        self._num_indices = 1
        self.prompt_logprobs: list[TokenLogprobs] | None = None  # if asked for

    @property
    def is_complete(self) -> bool:
        return len(self._reports) == len(self.beams)

    def report(
        self, beam: Sequence, candidates: BeamCandidates, logprobs: TokenLogprobs | None
    ) -> None:
        self._reports[id(beam)] = BeamReport(
            output_token_ids=beam.output_token_ids,
            score=beam.cumulative_logprob,
            candidates=candidates,
            logprobs=logprobs,
            output_logprobs=beam.output_logprobs,
        )

    def advance(self, *, is_last_position: bool) -> list[NextBeam]:
        """The beams of the next position; none when the search is finished. Changes no sequence
        but the group's own list; new forks have their parent's state.
        """
        reports = [self._reports[id(beam)] for beam in self.beams]
        self._reports.clear()
        continuations = self.search.advance(reports, is_last_position=is_last_position)
        following: list[NextBeam] = []
        kept: set[int] = set()
        for continuation in continuations:
            parent = self.beams[continuation.parent]
            is_fork = continuation.parent in kept
            kept.add(continuation.parent)
            sequence = parent
            if is_fork:
                sequence = parent.fork(self._num_indices)
                self._num_indices += 1
            following.append(NextBeam(sequence, continuation, is_fork))
        self.beams = [beam.sequence for beam in following]
        return following
