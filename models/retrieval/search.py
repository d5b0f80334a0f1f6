"""Searching several buckets for several wordings of one question: what is found, in one order.

Concurrent searches are computed together: all that look into the same view share one product.

Shapes: Q = the queries of one search, D = width.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.retrieval.bucket_index import BucketView
from models.retrieval.exact_index import Hits
from models.retrieval.fusion import Ranked, fuse
from models.retrieval.lexical_index import CorpusWeights, parse_query
from models.retrieval.segments import ChunkPlace, SegmentEntry

# Chosen on one half of the labelled set (`scripts/bench/retrieval_quality.py`).
LATER_QUERY_WEIGHT = 0.5  # of each query after the first
# A chunk's place among the lexical hits counts as much as one among the dense hits when it has this
# share of what the query's words are worth: a chunk with a few common words of it is no hit.
FULL_LEXICAL_SHARE = 0.5
MAX_LEXICAL_WEIGHT = 2.0
MIN_DEPTH = 50  # places of a ranking that are fused


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchedBucket:
    """A bucket as one search sees it."""

    name: str  # the order of equally good chunks of several buckets
    view: BucketView
    model_name: str  # cosines of different models cannot be compared
    queries_QD: NDArray[np.float32]  # the search's queries, embedded by that model


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is searched, and how."""

    buckets: Sequence[SearchedBucket]
    queries: Sequence[str]
    count: int
    use_dense: bool = True
    use_lexical: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A chunk that was found."""

    bucket: int  # its place among the search's buckets
    segment: SegmentEntry
    offset: int  # in the segment
    score: float  # what candidates are sorted by, best first
    cosine: float  # of its vector and the first query
    vector_D: NDArray[np.float32]

    @property
    def position(self) -> int:
        return self.segment.first_position + self.offset


_Item = tuple[int, int]  # bucket, key


def run_searches(searches: Sequence[Search]) -> list[list[Candidate]]:
    """For each search its best `count` chunks, best first. Equal ones stand in the order of their
    buckets' names, filenames and positions.
    """
    hits = _dense_hits(searches)
    return [_run(search, number, hits) for number, search in enumerate(searches)]


def _dense_hits(searches: Sequence[Search]) -> dict[tuple[int, int], list[Hits]]:
    """The hits of each (search, bucket), one per query. One product per view."""
    by_view: dict[int, list[tuple[int, int]]] = {}
    for number, search in enumerate(searches):
        for place, bucket in enumerate(search.buckets if search.use_dense else ()):
            by_view.setdefault(id(bucket.view), []).append((number, place))
    hits: dict[tuple[int, int], list[Hits]] = {}
    for users in by_view.values():
        buckets = [searches[number].buckets[place] for number, place in users]
        depth = max(_depth(searches[number]) for number, _ in users)
        queries_BD = np.concatenate([bucket.queries_QD for bucket in buckets])
        found = iter(buckets[0].view.dense.search(queries_BD, depth))
        for user, bucket in zip(users, buckets, strict=True):
            hits[user] = [next(found) for _ in range(len(bucket.queries_QD))]
    return hits


def _run(search: Search, number: int, hits: dict[tuple[int, int], list[Hits]]) -> list[Candidate]:
    rankings: list[list[Ranked[_Item]]] = []
    for query in range(len(search.queries)):
        weight = LATER_QUERY_WEIGHT if query else 1.0
        if search.use_dense:
            rankings += _dense_rankings(
                search, [hits[number, place][query] for place in range(len(search.buckets))], weight
            )
        if search.use_lexical:
            rankings.append(_lexical_ranking(search, search.queries[query], weight))
    return _candidates(search, _ordered(search, fuse(rankings).items())[: search.count])


def _dense_rankings(
    search: Search, hits: Sequence[Hits], weight: float
) -> list[list[Ranked[_Item]]]:
    """One ranking per embedding model."""
    by_model: dict[str, list[tuple[_Item, float]]] = {}
    for place, (bucket, found) in enumerate(zip(search.buckets, hits, strict=True)):
        by_model.setdefault(bucket.model_name, []).extend(
            ((place, key), score)
            for key, score in zip(found.keys.tolist(), found.scores.tolist(), strict=True)
        )
    return [
        [Ranked(item, weight) for item, _ in _ordered(search, found)[: _depth(search)]]
        for found in by_model.values()
    ]


def _lexical_ranking(search: Search, query: str, weight: float) -> list[Ranked[_Item]]:
    clauses = parse_query(query)
    weights = CorpusWeights([bucket.view.lexical for bucket in search.buckets])
    found = [
        ((place, key), score)
        for place, bucket in enumerate(search.buckets)
        for key, score in bucket.view.lexical.search(clauses, _depth(search), weights)
    ]
    full_score = weights.total(clauses) * FULL_LEXICAL_SHARE
    return [
        Ranked(item, weight * min(MAX_LEXICAL_WEIGHT, score / full_score))
        for item, score in _ordered(search, found)[: _depth(search)]
    ]


def _ordered(search: Search, found: Iterable[tuple[_Item, float]]) -> list[tuple[_Item, float]]:
    """Best first; equally good ones in an order that every replica has."""

    def order(scored: tuple[_Item, float]) -> tuple[float, str, ChunkPlace]:
        (place, key), score = scored
        bucket = search.buckets[place]
        return -score, bucket.name, bucket.view.segments.place(key)

    return sorted(found, key=order)


def _candidates(search: Search, found: list[tuple[_Item, float]]) -> list[Candidate]:
    vectors: dict[_Item, NDArray[np.float32]] = {}
    for place, bucket in enumerate(search.buckets):
        keys = [key for (other, key), _ in found if other == place]
        rows_ND = bucket.view.dense.vectors(np.array(keys, np.int64))
        vectors |= {(place, key): row for key, row in zip(keys, rows_ND, strict=True)}
    candidates = []
    for item, score in found:
        place, key = item
        bucket = search.buckets[place]
        segment, offset = bucket.view.segments.entry(key)
        candidates.append(
            Candidate(
                bucket=place,
                segment=segment,
                offset=offset,
                score=score,
                cosine=float(vectors[item] @ bucket.queries_QD[0]),
                vector_D=vectors[item],
            )
        )
    return candidates


def _depth(search: Search) -> int:
    return max(MIN_DEPTH, search.count)
