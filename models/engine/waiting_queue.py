"""The sequences that wait for blocks: by priority, tenant and adapter, in order of arrival."""

import heapq
from collections.abc import Collection, Iterator

from models.engine.sequence import Sequence

_Heap = list[tuple[tuple[int, int, int], Sequence]]


class WaitingQueue:
    """For each priority that somebody waits at, one heap for each tenant and each adapter that they
    wait with: those of an adapter that has to be waited for stay behind together."""

    def __init__(self) -> None:
        self._heaps: dict[int, dict[tuple[str, str], _Heap]] = {}

    def __len__(self) -> int:
        return sum(len(heap) for heaps in self._heaps.values() for heap in heaps.values())

    def __iter__(self) -> Iterator[Sequence]:
        for heaps in self._heaps.values():
            for heap in heaps.values():
                yield from (sequence for _, sequence in heap)

    def priorities(self) -> list[int]:
        return list(self._heaps)

    def tenants(self, priority: int) -> list[str]:
        """Whose requests wait at a priority."""
        return list({tenant for tenant, _ in self._heaps.get(priority, ())})

    def first(
        self, priority: int, tenant: str, *, but_adapters: Collection[str] = ()
    ) -> Sequence | None:
        """The one of a tenant to serve next at a priority, of those without one of these
        adapters."""
        heads = [
            heap[0]
            for (owner, adapter), heap in self._heaps.get(priority, {}).items()
            if owner == tenant and adapter not in but_adapters
        ]
        return min(heads)[1] if heads else None

    def push(self, sequence: Sequence) -> None:
        """It waits at the place that its arrival gives it."""
        heap = self._heaps.setdefault(sequence.priority, {}).setdefault(_place(sequence), [])
        heapq.heappush(heap, (sequence.order, sequence))

    def pop(self, sequence: Sequence) -> None:
        """Take one out that is the next of its tenant and adapter."""
        heap = self._heaps[sequence.priority][_place(sequence)]
        assert heap[0][1] is sequence, "the first is taken"
        heapq.heappop(heap)
        self._forget_empty(sequence)

    def remove(self, sequence: Sequence) -> None:
        heap = self._heaps[sequence.priority][_place(sequence)]
        heap[:] = [entry for entry in heap if entry[1] is not sequence]
        heapq.heapify(heap)
        self._forget_empty(sequence)

    def with_adapter(self, adapter: str) -> list[Sequence]:
        return [sequence for sequence in self if sequence.adapter == adapter]

    def _forget_empty(self, sequence: Sequence) -> None:
        heaps = self._heaps[sequence.priority]
        if not heaps[_place(sequence)]:
            del heaps[_place(sequence)]
        if not heaps:
            del self._heaps[sequence.priority]


def _place(sequence: Sequence) -> tuple[str, str]:
    return sequence.tenant, sequence.adapter
