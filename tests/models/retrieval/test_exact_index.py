"""Exact search is exact: compared with every product in float64, whatever comes and goes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models.retrieval import exact_index
from models.retrieval.exact_index import ExactIndex, ExactView, Hits
from models.retrieval.segments import chunk_key

WIDTH = 16

Rows = dict[int, NDArray[np.float16]]  # by segment


def unit_vectors(rng: np.random.Generator, count: int, width: int = WIDTH) -> NDArray[np.float32]:
    vectors = rng.normal(size=(count, width)).astype(np.float32)
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def true_hits(rows: Rows, query_D: NDArray[np.float32], count: int) -> dict[int, float]:
    """Keys and cosines of the best, and of all that are as good as the last of them."""
    scores = {
        chunk_key(number, offset): round(float(row.astype(np.float64) @ query_D), 9)
        for number, part in rows.items()
        for offset, row in enumerate(part)
    }
    best = sorted(scores.values(), reverse=True)[:count]
    return {key: score for key, score in scores.items() if best and score >= best[-1]}


def as_dict(hits: Hits) -> dict[int, float]:
    assert list(hits.scores) == sorted(hits.scores, reverse=True)
    return dict(zip(hits.keys.tolist(), hits.scores.tolist(), strict=True))


def check(view: ExactView, rows: Rows, queries_BD: NDArray[np.float32], count: int) -> None:
    assert len(view) == sum(map(len, rows.values()))
    for query_D, hits in zip(queries_BD, view.search(queries_BD, count), strict=True):
        assert as_dict(hits) == pytest.approx(true_hits(rows, query_D, count), abs=1e-8)
    for number, part in rows.items():
        keys = np.array([chunk_key(number, offset) for offset in range(len(part))], np.int64)
        assert np.array_equal(view.vectors(keys), part)


@pytest.fixture(params=[torch.bfloat16, torch.float32], ids=str)
def _product_dtype(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exact_index, "PRODUCT_DTYPE", request.param)
    monkeypatch.setattr(exact_index, "_MIN_CAPACITY", 4)


@settings(max_examples=60)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 9)), max_size=25),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 12),
)
def check_random_histories(steps: list[tuple[bool, int]], seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    index, rows = ExactIndex(WIDTH), Rows()
    kept: list[tuple[ExactView, Rows]] = []
    for number, (is_removal, num_rows) in enumerate(steps):
        if is_removal and rows:
            gone = int(rng.choice(list(rows)))
            index.remove([gone])
            index.gather()
            del rows[gone]
        else:
            vectors = unit_vectors(rng, num_rows).astype(np.float16)
            if rng.random() < 0.3 and rows:  # the same rows once more: ties
                vectors = rows[int(rng.choice(list(rows)))]
            index.add(number, vectors)
            rows[number] = vectors
        kept.append((index.view(), dict(rows)))
    queries = unit_vectors(rng, 3)
    for view, then in kept[-6:]:  # earlier views see what was there, not what came
        check(view, then, queries, count)


@pytest.mark.usefixtures("_product_dtype")
def test_every_view_of_a_random_history_finds_what_a_full_search_finds() -> None:
    check_random_histories()


def test_rows_that_differ_less_than_bfloat16_can_tell_are_ranked_rightly() -> None:
    rng = np.random.default_rng(1)
    base = unit_vectors(rng, 1, 384)
    close = base + rng.normal(scale=2e-3, size=(5_000, 384)).astype(np.float32)
    rows = {0: (close / np.linalg.norm(close, axis=1, keepdims=True)).astype(np.float16)}
    index = ExactIndex(384)
    index.add(0, rows[0])
    check(index.view(), rows, base, 10)


def test_rows_longer_than_one_do_not_hide_each_other() -> None:
    rng = np.random.default_rng(2)
    rows = {0: (30 * unit_vectors(rng, 500)).astype(np.float16)}
    index = ExactIndex(WIDTH)
    index.add(0, rows[0])
    query = 20 * unit_vectors(rng, 1)
    found = as_dict(index.view().search(query, 10)[0])
    assert found.keys() == true_hits(rows, query[0], 10).keys()


def test_many_queries_at_once_find_what_each_finds_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    index = ExactIndex(WIDTH)
    index.add(0, unit_vectors(rng, 300).astype(np.float16))
    queries = unit_vectors(rng, 50)
    alone = [as_dict(index.view().search(query[None], 5)[0]) for query in queries]
    monkeypatch.setattr(exact_index, "_MAX_SCORES", 300 * 7)  # several products
    assert [as_dict(hits) for hits in index.view().search(queries, 5)] == alone


def test_a_text_that_stands_there_thousands_of_times_is_not_ranked_as_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exact_index, "_MAX_RESCORED", 64)
    index = ExactIndex(WIDTH)
    same = np.zeros((1000, WIDTH), np.float16)
    same[:, 0] = 1
    index.add(0, -same)
    index.add(1, same)
    index.add(2, np.eye(WIDTH, dtype=np.float16))  # one of which is the same too
    query_D = np.zeros(WIDTH, np.float32)
    query_D[0] = 1
    (hits,) = index.view().search(query_D[None], 10)
    assert set(hits.scores) == {1.0}
    assert len(set(hits.keys.tolist())) == 64


def test_an_empty_index_finds_nothing() -> None:
    index = ExactIndex(WIDTH)
    assert len(index.view().search(np.ones((2, WIDTH), np.float32), 5)[1].keys) == 0
    index.add(0, np.ones((3, WIDTH), np.float16))
    index.remove([0])
    index.gather()
    assert len(index.view().search(np.ones((1, WIDTH), np.float32), 5)[0].keys) == 0


def test_memory_follows_what_is_alive() -> None:
    index = ExactIndex(WIDTH)
    for number in range(40):
        index.add(number, np.ones((500, WIDTH), np.float16))
    most = index.num_bytes
    for number in range(39):
        index.remove([number])
        index.gather()
    assert index.num_live == 500
    assert index.num_bytes < most / 8
