"""Words are found and weighed: against BM25 computed by hand, and in every script and spelling."""

import math
import re
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.lexical_index import CorpusWeights, LexicalIndex, LexicalView, parse_query
from models.retrieval.segments import chunk_key, split_key


def view_of(*texts: str) -> LexicalView:
    return LexicalIndex(num_threads=1).change(added=[(0, texts)], removed=[])


def search(view: LexicalView, query: str, count: int = 10) -> list[tuple[int, float]]:
    return view.search(parse_query(query), count, CorpusWeights([view]))


def found(view: LexicalView, query: str) -> set[int]:
    """The rows that have something of a query."""
    return {split_key(key)[1] for key, _ in search(view, query)}


def best(view: LexicalView, query: str) -> int:
    return split_key(search(view, query)[0][0])[1]


def bm25(texts: Sequence[str], words: Sequence[str]) -> list[float]:
    """As Robertson and Zaragoza (2009) have it; k1 = 1.2, b = 0.75."""
    documents = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    mean_length = sum(sum(document.values()) for document in documents) / len(documents)
    scores = []
    for document in documents:
        length, score = sum(document.values()), 0.0
        for word in words:
            num_with = sum(word in other for other in documents)
            weight = math.log(1 + (len(documents) - num_with + 0.5) / (num_with + 0.5))
            norm = 1.2 * (1 - 0.75 + 0.75 * length / mean_length)
            score += weight * document[word] * 2.2 / (document[word] + norm)
        scores.append(score)
    return scores


WORDS = ["ash", "birch", "cedar", "elm", "fir", "oak", "pine", "yew"]


@settings(max_examples=50)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join),
        min_size=1,
        max_size=12,
    ),
    query=st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True),
)
def test_scores_are_bm25(texts: list[str], query: list[str]) -> None:
    scores = dict(search(view_of(*texts), " ".join(query), count=20))
    expected = {chunk_key(0, row): score for row, score in enumerate(bm25(texts, query)) if score}
    assert scores == pytest.approx(expected, rel=1e-4)


@settings(max_examples=25)
@given(
    steps=st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=1, max_size=15),
    seed=st.integers(0, 1000),
)
def test_after_any_changes_what_is_found_is_what_is_there(
    steps: list[tuple[bool, int]], seed: int
) -> None:
    index, there, view = LexicalIndex(num_threads=1), {}, None
    for number, (is_removal, count) in enumerate(steps):
        removed = [min(there)] if is_removal and there else []
        added = [(number, [f"{WORDS[(seed + row) % 8]} number{number}" for row in range(count)])]
        before, view = view, index.change(added=added, removed=removed)
        expected_before = {word: keys_with(there, word) for word in WORDS}
        for gone in removed:
            del there[gone]
        there |= dict(added)
        for word in WORDS:
            assert {key for key, _ in search(view, word, 100)} == keys_with(there, word)
            if before is not None:  # a view does not see what came after it
                assert {key for key, _ in search(before, word, 100)} == expected_before[word]


def keys_with(there: dict[int, list[str]], word: str) -> set[int]:
    return {
        chunk_key(number, row)
        for number, texts in there.items()
        for row, text in enumerate(texts)
        if word in text
    }


def test_a_code_is_found_before_its_parts() -> None:
    view = view_of(
        "Pump QX-99 of 12 parts, like all QX and all of size 12.",
        "The pump QX-12 is green.",
        "Model QX12 is blue.",
        "QX 12/B",
        "Nothing of the kind.",
    )
    for query in ("What is the torque of the QX-12?", "qx-12", "QX12"):
        ranked = [split_key(key)[1] for key, _ in search(view, query)]
        assert set(ranked[:3]) == {1, 2, 3}, query


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Müller", {0, 1, 2}),
        ("muller", {0, 1}),
        ("MÜLLER", {0, 1, 2}),
        ("Strasse", {3}),
        ("straße", {3}),
        ("naïve", {4}),
        ("Łódź", {5}),
        ("3.14", {6}),
        ("1,234", {7}),
        ("1234", {7}),
        ("東京", {8}),
        ("大阪府", set()),
        ("한국어", {9}),
        ("ภาษาไทย", {10}),
        ("Москва", {11}),
        ("max_idle_conns", {12}),
        ("ana@example.org", {13}),
        ("§ 14b", {14}),
    ],
)
def test_words_of_every_kind_are_found(query: str, expected: set[int]) -> None:
    view = view_of(
        "Herr Müller",
        "Herr Mu\u0308ller, decomposed",
        "Herr Mueller",
        "in der Hauptstraße, Straße",
        "a naive thought",
        "the city of Lodz",
        "pi is 3.14159, about 3.14",
        "it costs 1,234 euros",
        "私は東京に住んでいます",
        "저는 한국어를 배웁니다",
        "ฉันพูดภาษาไทยได้",
        "Москва́ — столица; Москва",
        "set max_idle_conns to 5",
        "write to ana@example.org",
        "see § 14b of the act",
    )
    assert found(view, query) & set(range(15)) >= expected
    if expected:
        assert best(view, query) in expected


def test_a_spelt_out_umlaut_finds_the_umlaut_where_nobody_is_spelt_so() -> None:
    assert found(view_of("Herr Müller", "Frau Meier"), "Mueller") == {0}
    assert found(view_of("Herr Müller", "Herr Mueller"), "Mueller") == {1}


@pytest.mark.parametrize(
    "query",
    [
        "@t:(and|are|numbers)",
        'body:pump AND NOT "green" OR (',
        "words:* key:[0 TO 9]",
        "/.*/ ~ ^ + - ! { } [ ] \\",
        "\x00pump\x00",
        "pump\ud800",
        "a" * 100_000,
    ],
)
def test_no_query_is_a_language_of_its_own(query: str) -> None:
    view = view_of("The pump is green.", "and are numbers")
    assert len(search(view, query)) <= 2


def test_equally_good_chunks_are_all_found_whatever_is_asked_for() -> None:
    view = view_of(*["the same words"] * 90, "same")
    hits = search(view, "words", count=5)
    assert len(hits) == 90
    assert len({score for _, score in hits}) == 1


def test_several_buckets_weigh_words_as_if_they_were_one() -> None:
    texts = [
        *(f"alder number {n}" for n in range(30)),
        "beech number 4",
        *(f"beech number {n}" for n in range(5)),
        "alder beech",
    ]
    whole = view_of(*texts)
    parts = [view_of(*texts[:31]), view_of(*texts[31:])]
    clauses = parse_query("alder beech number 4")
    weights = CorpusWeights(parts)
    scores = sorted(
        (score for part in parts for _, score in part.search(clauses, 50, weights)), reverse=True
    )
    expected = [score for _, score in whole.search(clauses, 50, CorpusWeights([whole]))]
    # The mean length of a chunk is each bucket's own.
    assert scores == pytest.approx(expected, rel=0.05)
    assert weights.total(clauses) == pytest.approx(CorpusWeights([whole]).total(clauses))


def test_many_small_changes_are_merged_and_what_is_found_stays_the_same() -> None:
    index = LexicalIndex(num_threads=1)
    for number in range(30):
        view = index.change(added=[(number, [f"common word{number}"])], removed=[])
        before = sorted(search(view, "common", 50))
        settled = index.settle()
        assert settled is not None
        assert index.settle() is None
        assert sorted(search(settled, "common", 50)) == before
        assert sorted(search(view, "common", 50)) == before
    assert len(before) == 30


def test_memory_is_counted_by_what_is_there() -> None:
    index = LexicalIndex(num_threads=1)
    index.change(added=[(0, ["x" * 1000]), (1, ["y" * 3000])], removed=[])
    both = index.num_bytes
    index.change(added=[], removed=[1])
    assert index.num_bytes == both // 4
