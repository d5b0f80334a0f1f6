"""Segments whose texts and vectors follow from their names."""

import hashlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from models.retrieval.bucket_index import BucketIndex, BucketView
from models.retrieval.search import Candidate, Search, SearchedBucket, run_searches
from models.retrieval.segments import IndexSegment

WIDTH = 24


def vector_of(text: str) -> NDArray[np.float32]:
    """As an embedding that knows only whole texts."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    vector = np.random.default_rng(seed).normal(size=WIDTH)
    unit: NDArray[np.float32] = (vector / np.linalg.norm(vector)).astype(np.float32)
    return unit


def segment(
    segment_id: str, texts: Sequence[str], *, filename: str = "", first_position: int = 0
) -> IndexSegment:
    return IndexSegment(
        segment_id=segment_id,
        filename=filename or f"{segment_id}.txt",
        etag="e",
        first_position=first_position,
        vectors_ND=np.stack([vector_of(text) for text in texts]).astype(np.float16),
        texts=texts,
    )


def index_of(
    *segments: IndexSegment, version: int = 1, max_exact_chunks: int = 1000
) -> BucketIndex:
    index = BucketIndex(WIDTH, max_exact_chunks=max_exact_chunks, num_threads=1)
    index.change(version, added=segments, removed=())
    return index


def search_of(*views: BucketView, queries: Sequence[str], count: int = 10, **how: bool) -> Search:
    return Search(
        buckets=[
            SearchedBucket(
                name=f"bucket{place}",
                view=view,
                model_name="m",
                queries_QD=np.stack([vector_of(query) for query in queries]),
            )
            for place, view in enumerate(views)
        ],
        queries=queries,
        count=count,
        **how,
    )


def search(
    *views: BucketView, queries: Sequence[str], count: int = 10, **how: bool
) -> list[Candidate]:
    return run_searches([search_of(*views, queries=queries, count=count, **how)])[0]


def places(candidates: Sequence[Candidate]) -> list[tuple[int, str, int]]:
    """Bucket, filename and position."""
    return [(one.bucket, one.segment.filename, one.position) for one in candidates]
