"""The sequences that wait for blocks, in the order in which they are served."""

import heapq
from collections.abc import Iterator

from models.engine.sequence import Sequence


class WaitingQueue:
    """One heap for each priority that somebody waits at."""

    def __init__(self) -> None:
        self._heaps: dict[int, list[tuple[tuple[int, int, int], Sequence]]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._heaps.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for heap in self._heaps.values() for _, sequence in heap)

    def priorities(self) -> list[int]:
        return list(self._heaps)

    def first(self, priority: int) -> Sequence | None:
        """The one to serve next at a priority."""
        heap = self._heaps.get(priority)
        return heap[0][1] if heap else None

    def push(self, sequence: Sequence) -> None:
        """It waits at the place that its arrival gives it."""
        heapq.heappush(self._heaps.setdefault(sequence.priority, []), (sequence.order, sequence))

    def pop(self, priority: int) -> None:
        """Take the first one of a priority out."""
        heap = self._heaps[priority]
        heapq.heappop(heap)
        if not heap:
            del self._heaps[priority]

    def remove(self, sequence: Sequence) -> None:
        heap = [entry for entry in self._heaps[sequence.priority] if entry[1] is not sequence]
        heapq.heapify(heap)
        if heap:
            self._heaps[sequence.priority] = heap
        else:
            del self._heaps[sequence.priority]
