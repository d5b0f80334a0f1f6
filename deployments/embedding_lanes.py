"""Which waiting texts are embedded next: queries before anything else, and no caller for ever last.

Four lanes: queries (a search waits for them), plain texts (a client of the embeddings endpoint
waits), passages (a bucket is being embedded), and the texts of batches, which have a day's time. A
lane that has been passed over eight times in a row has its turn; that of batches after twenty.
Within a lane the calls take turns; a batch is filled up with texts of like length of the others.
Integers only; one thread at a time.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice

from cluster.retrieval import InputKind
from models.embedding.batching import BatchLimits, BatchShape, next_batch

# In order of urgency; and how often each is passed over in a row.
_MAX_PASSED_OVER = {
    InputKind.QUERY: 8,
    InputKind.PLAIN: 8,
    InputKind.PASSAGE: 8,
    InputKind.BULK: 20,  # so what batches take of busy replicas is a twentieth
}
_LANES = tuple(_MAX_PASSED_OVER)
_MAX_CANDIDATES = 1024  # texts that are looked at to fill a batch


@dataclass(eq=False, slots=True)
class WaitingCall:
    """The texts of one call that are not chosen yet."""

    rows: Sequence[Sequence[int]]  # tokens
    order: list[int] = field(init=False)  # positions in `rows`, the longest last, then the first

    def __post_init__(self) -> None:
        self.order = sorted(range(len(self.rows)), key=lambda i: (len(self.rows[i]), -i))

    def next_length(self) -> int:
        return len(self.rows[self.order[-1]])

    def longest_first(self, most_tokens: int) -> Iterator[int]:
        """Positions of the rows of at most so many tokens."""
        return (i for i in reversed(self.order) if len(self.rows[i]) <= most_tokens)


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of some calls, computed together."""

    shape: BatchShape
    rows: tuple[tuple[WaitingCall, int], ...]  # a call, and the position of its row

    def tokens(self) -> list[Sequence[int]]:
        return [call.rows[index] for call, index in self.rows]


@dataclass(slots=True)
class _Lane:
    max_passed_over: int
    calls: deque[WaitingCall] = field(default_factory=deque)  # the next in turn first
    num_passed_over: int = 0


class EmbeddingLanes:
    """All waiting calls."""

    def __init__(self) -> None:
        self._lanes = {kind: _Lane(times) for kind, times in _MAX_PASSED_OVER.items()}

    def add(self, call: WaitingCall, kind: InputKind) -> None:
        assert call.order, "a call has at least one text"
        self._lanes[kind].calls.append(call)

    def discard(self, call: WaitingCall, kind: InputKind) -> None:
        """Forget a call that nobody waits for; it may be done already."""
        calls = self._lanes[kind].calls
        if call in calls:
            calls.remove(call)

    def next_batch(self, limits: BatchLimits) -> Batch | None:
        """Choose rows and take them out; None when nothing waits."""
        lane = self._next_lane()
        if lane is None:
            return None
        candidates = _candidates(lane)
        shape = next_batch([len(call.rows[index]) for call, index in candidates], limits)
        chosen = tuple(candidates[: shape.num_texts])
        _take(lane, chosen)
        return Batch(shape, chosen)

    def _next_lane(self) -> _Lane | None:
        waiting = [lane for lane in self._lanes.values() if lane.calls]
        if not waiting:
            return None
        overdue = (lane for lane in waiting if lane.num_passed_over >= lane.max_passed_over)
        chosen = next(overdue, waiting[0])
        for lane in waiting:
            lane.num_passed_over += 1
        chosen.num_passed_over = 0
        return chosen


def lanes_before(kind: InputKind) -> tuple[InputKind, ...]:
    """The lanes whose texts are computed before a new one of this kind, its own among them."""
    return _LANES[: _LANES.index(kind) + 1]


def _candidates(lane: _Lane) -> list[tuple[WaitingCall, int]]:
    """Rows that may share a batch, longest first: that of the call in turn, and no longer ones."""
    first = lane.calls[0]
    most_tokens = first.next_length()
    rows = ((call, index) for call in lane.calls for index in call.longest_first(most_tokens))
    candidates = list(islice(rows, _MAX_CANDIDATES))
    candidates.sort(key=lambda row: len(row[0].rows[row[1]]), reverse=True)  # stable
    return candidates


def _take(lane: _Lane, chosen: Sequence[tuple[WaitingCall, int]]) -> None:
    taken: dict[WaitingCall, set[int]] = {}
    for call, index in chosen:
        taken.setdefault(call, set()).add(index)
    for call, indices in taken.items():
        call.order = [index for index in call.order if index not in indices]
    lane.calls.rotate(-1)
    lane.calls = deque(call for call in lane.calls if call.order)
