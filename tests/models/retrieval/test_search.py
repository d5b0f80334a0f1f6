"""Searches over several buckets and wordings: one order, the same on every replica."""

import numpy as np

from models.retrieval.search import Search, SearchedBucket, run_searches
from tests.models.retrieval.bucket_samples import (
    index_of,
    places,
    search,
    search_of,
    segment,
    vector_of,
)

BEASTS = segment("beasts", ["a grey wolf", "a red fox", "a brown bear"])
BIRDS = segment("birds", ["a grey heron", "a red kite", "a brown owl"])


def test_a_chunk_that_words_and_vectors_find_comes_first() -> None:
    view = index_of(BEASTS, BIRDS).view
    assert places(search(view, queries=["a red fox"]))[0] == (0, "beasts.txt", 1)
    found = search(view, queries=["a red fox"])[0]
    assert abs(found.cosine - 1) < 1e-3


def test_buckets_are_searched_as_if_they_were_one() -> None:
    one = index_of(BEASTS, BIRDS).view
    two = (index_of(BEASTS).view, index_of(BIRDS).view)
    for query in ("a red fox", "grey", "owl or bear", "something else"):
        apart = [place[1:] for place in places(search(*two, queries=[query]))]
        together = [place[1:] for place in places(search(one, queries=[query]))]
        assert apart == together, query


def test_the_order_of_loading_does_not_show() -> None:
    texts = [f"the same words {n % 2}" for n in range(6)]
    segments = [segment(name, texts) for name in ("x", "y", "z")]
    one = index_of(*segments)
    other = index_of(segments[2])
    other.change(2, added=[segments[0]], removed=())
    other.change(3, added=[segments[1]], removed=())
    for query in ("the same words 1", "words", "nothing of it"):
        for count in (1, 4, 10, 18):
            assert places(search(one.view, queries=[query], count=count)) == places(
                search(other.view, queries=[query], count=count)
            )


def test_equally_good_chunks_stand_in_the_order_of_bucket_file_and_position() -> None:
    copies = index_of(segment("b", ["same", "same"]), segment("a", ["same"])).view
    found = search(copies, copies, queries=["same"])
    assert places(found) == [
        *((0, "a.txt", 0), (0, "b.txt", 0), (0, "b.txt", 1)),
        *((1, "a.txt", 0), (1, "b.txt", 0), (1, "b.txt", 1)),
    ]


def test_the_first_of_several_queries_counts_most() -> None:
    view = index_of(BEASTS, BIRDS).view
    assert places(search(view, queries=["a brown owl", "a red fox"]))[:2] == [
        (0, "birds.txt", 2),
        (0, "beasts.txt", 1),
    ]
    assert places(search(view, queries=["a red fox", "a brown owl"]))[:2] == [
        (0, "beasts.txt", 1),
        (0, "birds.txt", 2),
    ]


def test_the_cosine_is_of_the_first_query() -> None:
    view = index_of(BEASTS).view
    found = search(view, queries=["a red fox", "a grey wolf"])
    by_place = {one.position: one.cosine for one in found}
    assert abs(by_place[1] - 1) < 1e-3
    assert abs(by_place[0] - float(vector_of("a red fox") @ vector_of("a grey wolf"))) < 1e-2


def test_words_alone_and_vectors_alone() -> None:
    view = index_of(BEASTS, BIRDS).view
    assert {p for _, _, p in places(search(view, queries=["grey"], use_dense=False))} == {0}
    assert len(search(view, queries=["grey"], use_dense=False)) == 2
    assert len(search(view, queries=["grey"], use_lexical=False)) == 6


def test_a_chunk_with_a_few_common_words_of_the_query_does_not_push_aside_a_near_vector() -> None:
    """The vector's best has none of the words; ten others have two common ones of eight."""
    others = [f"how do I get the number {n}" for n in range(10)]
    question = "how do I feed a small animal that hibernates"
    near = segment("near", ["hedgehogs eat cat food"])
    near.vectors_ND[0] = vector_of(question)
    view = index_of(near, segment("others", others)).view
    assert places(search(view, queries=[question]))[0] == (0, "near.txt", 0)


def test_searches_that_are_computed_together_find_what_each_finds_alone() -> None:
    one, two = index_of(BEASTS).view, index_of(BIRDS).view
    searches = [
        search_of(one, queries=["a red fox"], count=2),
        search_of(one, two, queries=["grey", "brown"], count=5),
        search_of(two, queries=["kite"], count=1, use_dense=False),
        search_of(one, queries=["wolf"], count=60),
    ]
    together = [places(found) for found in run_searches(searches)]
    assert together == [places(run_searches([one])[0]) for one in searches]


def test_cosines_of_different_models_are_not_compared() -> None:
    """Each model's best chunk is a first place, though one model's cosines are all larger."""
    near, far = index_of(segment("n", ["n0", "n1", "n2"])).view, index_of(segment("f", ["f"])).view
    query = np.stack([vector_of("n0")])
    found = run_searches(
        [
            Search(
                buckets=[
                    SearchedBucket(name="near", view=near, model_name="a", queries_QD=query),
                    SearchedBucket(name="far", view=far, model_name="b", queries_QD=-query),
                ],
                queries=["nothing that is written"],
                count=2,
            )
        ]
    )[0]
    assert {one.bucket for one in found} == {0, 1}


def test_an_empty_bucket_is_no_error() -> None:
    assert search(index_of().view, queries=["anything"]) == []
    assert len(search(index_of().view, index_of(BEASTS).view, queries=["anything"])) == 3
