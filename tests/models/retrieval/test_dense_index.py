"""A bucket's vectors move into a graph and back while they are searched."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.retrieval import dense_index
from models.retrieval.dense_index import DenseIndex, DenseView, SearchKind
from models.retrieval.exact_index import ExactIndex
from models.retrieval.segments import chunk_keys

WIDTH = 16
MAX_EXACT = 300


def unit_vectors(rng: np.random.Generator, count: int) -> NDArray[np.float16]:
    vectors = rng.normal(size=(count, WIDTH))
    unit: NDArray[np.float16] = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(
        np.float16
    )
    return unit


def index_of(parts: dict[int, NDArray[np.float16]]) -> DenseIndex:
    index = DenseIndex(WIDTH, max_exact_chunks=MAX_EXACT, num_threads=1)
    for number, vectors in parts.items():
        index.add(number, vectors)
    return index


def best_keys(view: DenseView, queries: NDArray[np.float32]) -> list[list[int]]:
    return [hits.keys.tolist()[:5] for hits in view.search(queries, 5)]


def true_keys(
    parts: dict[int, NDArray[np.float16]], queries: NDArray[np.float32]
) -> list[list[int]]:
    exact = ExactIndex(WIDTH)
    for number, vectors in parts.items():
        exact.add(number, vectors)
    return [hits.keys.tolist()[:5] for hits in exact.view().search(queries, 5)]


def test_few_chunks_are_searched_exactly() -> None:
    index = index_of({0: unit_vectors(np.random.default_rng(0), MAX_EXACT)})
    assert not index.upkeep()
    assert index.facts().kind is SearchKind.EXACT
    assert index.facts().recall is None


def test_many_chunks_move_into_the_graph_piece_by_piece_and_are_found_all_the_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense_index, "_ROWS_PER_STEP", 150)  # two segments
    rng = np.random.default_rng(1)
    parts = {number: unit_vectors(rng, 100) for number in range(8)}
    queries = unit_vectors(rng, 20).astype(np.float32)
    index, truth = index_of(parts), true_keys(parts, queries)
    assert best_keys(index.view(), queries) == truth
    num_steps, waiting = 0, [800]
    while index.upkeep():
        num_steps += 1
        waiting.append(index.facts().num_waiting)
        view = index.view()
        assert best_keys(view, queries) == truth  # so small a graph finds everything
        for number, vectors in parts.items():
            assert np.array_equal(view.vectors(chunk_keys(number, 100)), vectors)
    assert waiting == sorted(waiting, reverse=True)
    assert num_steps == 1 + 4
    assert index.view().measure()
    facts = index.facts()
    assert (facts.kind, facts.num_waiting) == (SearchKind.APPROXIMATE, 0)
    assert facts.recall is not None
    assert facts.recall >= 0.99
    assert not index.view().measure()


def test_memory_falls_while_rows_move_into_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks go as soon as their rows have moved; usearch's own memory grows by doubling."""
    monkeypatch.setattr(dense_index, "_ROWS_PER_STEP", 512)
    width = 4096  # blocks of 1,536 rows
    rows = np.random.default_rng(7).normal(size=(9_000, width)).astype(np.float16)
    index = DenseIndex(width, max_exact_chunks=1000, num_threads=2, capacity=9_000)
    for number in range(90):
        index.add(number, rows[100 * number : 100 * (number + 1)])
    loaded = index.facts().num_bytes
    most = 0
    while index.upkeep():
        most = max(most, index.facts().num_bytes)
    assert index.facts().num_waiting == 0
    assert most < 1.3 * loaded


def test_a_view_from_before_the_move_still_finds_what_it_found() -> None:
    rng = np.random.default_rng(2)
    parts = {number: unit_vectors(rng, 100) for number in range(5)}
    queries = unit_vectors(rng, 10).astype(np.float32)
    index = index_of(parts)
    before, truth = index.view(), true_keys(parts, queries)
    while index.upkeep():
        pass
    index.remove([2])
    index.add(9, unit_vectors(rng, 50))
    assert best_keys(before, queries) == truth


def test_a_bucket_that_shrinks_is_searched_exactly_again() -> None:
    rng = np.random.default_rng(3)
    parts = {number: unit_vectors(rng, 100) for number in range(6)}
    index = index_of(parts)
    while index.upkeep():
        pass
    for number in range(5):
        index.remove([number])
        del parts[number]
    while index.upkeep():
        pass
    assert index.facts().kind is SearchKind.EXACT
    queries = unit_vectors(rng, 10).astype(np.float32)
    assert best_keys(index.view(), queries) == true_keys(parts, queries)


@settings(max_examples=25)
@given(
    steps=st.lists(st.sampled_from(["add", "add", "remove", "keep up"]), max_size=40),
    seed=st.integers(0, 1000),
)
def check_random_histories(steps: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    index = DenseIndex(WIDTH, max_exact_chunks=60, num_threads=1)
    parts: dict[int, NDArray[np.float16]] = {}
    for number, step in enumerate(steps):
        if step == "add":
            parts[number] = unit_vectors(rng, int(rng.integers(1, 40)))
            index.add(number, parts[number])
        elif step == "remove" and parts:
            gone = int(rng.choice(list(parts)))
            index.remove([gone])
            del parts[gone]
        elif step == "keep up":
            index.upkeep()
    assert index.num_live == sum(map(len, parts.values()))
    queries = unit_vectors(rng, 5).astype(np.float32)
    assert best_keys(index.view(), queries) == true_keys(parts, queries)


def test_whatever_happens_all_living_chunks_are_found_and_no_dead_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dense_index, "_ROWS_PER_STEP", 30)  # some segments, not all
    check_random_histories()
