"""One ranking out of several, by reciprocal rank (Cormack, Clarke, Buettcher 2009).

Only ranks count, so rankings whose scores cannot be compared (cosines, BM25) can be fused.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item", bound=Hashable)


@dataclass(frozen=True, slots=True)
class Ranking(Generic[Item]):
    """Items, best first, and how much their order counts."""

    items: Sequence[Item]
    weight: float


def fuse(rankings: Sequence[Ranking[Item]], *, rank_offset: float) -> dict[Item, float]:
    """The score of each item: the sum of weight / (rank_offset + rank), ranks counted from 1.

    A small offset lets the first places count most; a large one that items stand in many rankings.
    """
    scores: dict[Item, float] = {}
    for ranking in rankings:
        for rank, item in enumerate(ranking.items, start=1):
            scores[item] = scores.get(item, 0.0) + ranking.weight / (rank_offset + rank)
    return scores
