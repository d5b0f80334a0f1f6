"""The graph finds nearly what exact search finds, and never what a view does not have."""

import threading

import numpy as np
from numpy.typing import NDArray

from models.retrieval.approximate_index import TARGET_RECALL, ApproximateIndex, recall_of
from models.retrieval.exact_index import ExactIndex, Hits
from models.retrieval.segments import chunk_keys, split_key

WIDTH = 32
SEGMENT = 500


def vectors_like_embeddings(rng: np.random.Generator, count: int) -> NDArray[np.float16]:
    """Around a common mean and with few strong directions."""
    strengths = np.exp(-np.arange(WIDTH) / 8)
    vectors = rng.normal(size=(count, WIDTH)) * strengths + 0.3
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float16
    )
    return unit


def queries_of(rng: np.random.Generator, count: int) -> NDArray[np.float32]:
    return vectors_like_embeddings(rng, count).astype(np.float32)


def built(rng: np.random.Generator, num_segments: int) -> tuple[ApproximateIndex, ExactIndex]:
    graph, exact = ApproximateIndex(WIDTH, num_threads=1), ExactIndex(WIDTH)
    for number in range(num_segments):
        vectors = vectors_like_embeddings(rng, SEGMENT)
        graph.add([(number, vectors)])
        exact.add(number, vectors)
    return graph, exact


def keys_of(hits: list[Hits], count: int) -> list[NDArray[np.int64]]:
    return [one.keys[:count] for one in hits]


def test_the_effort_is_chosen_so_that_the_recall_is_reached() -> None:
    rng = np.random.default_rng(0)
    graph, exact = built(rng, 20)
    assert graph.recall is None
    assert graph.is_tuning_due
    graph.tune(range(20))
    assert graph.recall is not None
    assert graph.recall >= TARGET_RECALL
    assert not graph.is_tuning_due
    queries = queries_of(rng, 200)
    truth = keys_of(exact.view().search(queries, 10), 10)
    assert recall_of(graph.search(queries, 10, range(20)), truth) >= TARGET_RECALL


def test_scores_are_those_of_exact_search() -> None:
    rng = np.random.default_rng(1)
    graph, exact = built(rng, 4)
    queries = queries_of(rng, 20)
    for found, true in zip(
        graph.search(queries, 5, range(4)), exact.view().search(queries, 5), strict=True
    ):
        assert found.keys[0] == true.keys[0]
        assert found.scores[0] == true.scores[0]


def test_dead_rows_are_never_found_even_where_they_are_nearly_all() -> None:
    rng = np.random.default_rng(2)
    graph = ApproximateIndex(WIDTH, num_threads=1)
    vectors = vectors_like_embeddings(rng, 40)
    for number in range(60):  # the same file embedded sixty times
        graph.add([(number, vectors)])
    graph.add([(60, vectors_like_embeddings(rng, SEGMENT))])
    found = graph.search(vectors.astype(np.float32), 10, {59, 60})
    for place, hits in enumerate(found):
        assert len(hits.keys) >= 10
        assert {split_key(key)[0] for key in hits.keys.tolist()} <= {59, 60}
        assert split_key(int(hits.keys[0])) == (59, place)


def test_many_small_segments_are_added_at_once() -> None:
    rng = np.random.default_rng(6)
    graph = ApproximateIndex(WIDTH, num_threads=2)
    parts = [(number, vectors_like_embeddings(rng, number % 5)) for number in range(200)]
    graph.add(parts[:120])
    graph.add(parts[120:])
    assert graph.num_rows == 400
    num_found = 0
    for number, vectors in parts:
        assert np.array_equal(graph.segment_vectors(number), vectors)
        keys = chunk_keys(number, len(vectors))
        assert np.array_equal(graph.vectors(keys[::-1]), vectors[::-1])
        for key, query in zip(keys.tolist(), vectors.astype(np.float32), strict=True):
            num_found += graph.search(query[None], 1, range(200))[0].keys[0] == key
    assert num_found >= 390  # which links two threads make depends on which is first


def test_rows_that_are_larger_than_all_before_are_found_too() -> None:
    """The graph's scale is that of the first rows: later ones are cut off at its end."""
    rng = np.random.default_rng(7)
    graph = ApproximateIndex(WIDTH, num_threads=1)
    graph.add([(0, np.full((1, WIDTH), WIDTH**-0.5, np.float16))])
    vectors = vectors_like_embeddings(rng, SEGMENT)
    graph.add([(1, vectors)])
    found = graph.search(vectors.astype(np.float32), 10, {0, 1})
    assert (
        np.mean(
            [hits.keys[0] == key for hits, key in zip(found, chunk_keys(1, SEGMENT), strict=True)]
        )
        > 0.95
    )


def test_nothing_alive_finds_nothing() -> None:
    graph, _ = built(np.random.default_rng(3), 1)
    assert len(graph.search(np.ones((1, WIDTH), np.float32), 10, set())[0].keys) == 0
    assert len(graph.vectors(np.empty(0, np.int64))) == 0


def test_searches_go_on_while_rows_are_added_and_the_recall_is_measured() -> None:
    rng = np.random.default_rng(4)
    graph, exact = built(rng, 6)
    queries = queries_of(rng, 40)
    truth = keys_of(exact.view().search(queries, 10), 10)
    more = [vectors_like_embeddings(rng, SEGMENT) for _ in range(6)]

    def add_and_measure() -> None:
        for number, vectors in enumerate(more, start=6):
            graph.add([(number, vectors)])
        graph.tune(range(12))

    thread = threading.Thread(target=add_and_measure)
    thread.start()
    while True:
        is_last = not thread.is_alive()
        assert recall_of(graph.search(queries, 10, range(6)), truth) >= 0.95
        assert graph.num_bytes > 0
        if is_last:
            break
    thread.join()
    assert graph.recall is not None


def test_memory_is_told_while_rows_are_added() -> None:
    """usearch's own figure ends the process when it is read meanwhile."""
    rng = np.random.default_rng(5)
    graph = ApproximateIndex(64, num_threads=2)
    thread = threading.Thread(
        target=lambda: [
            graph.add([(number, rng.normal(size=(200, 64)).astype(np.float16))])
            for number in range(12)
        ]
    )
    thread.start()
    seen = set()
    while thread.is_alive():
        seen.add(graph.num_bytes)
    thread.join()
    assert len(seen) > 2
    assert max(seen) <= graph.num_bytes
