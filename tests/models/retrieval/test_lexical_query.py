"""What is looked up for what a person wrote."""

import pytest

from models.retrieval.lexical_index import parse_query
from models.retrieval.lexical_query import MAX_CLAUSES, Clause, letter_pairs, normalized


def words_of(query: str) -> list[tuple[tuple[str, ...], ...]]:
    return [clause.spellings for clause in parse_query(query)]


def test_words_are_folded_and_each_is_looked_up_once() -> None:
    assert words_of("The pump, the PUMP!") == [(("the",),), (("pump",),)]


def test_a_code_is_its_parts_and_both_in_a_row_or_written_together() -> None:
    assert words_of("QX-12") == [(("qx",),), (("12",),), (("qx", "12"), ("qx12",))]


def test_a_code_written_together_may_stand_apart_in_the_text() -> None:
    assert words_of("qx12") == [(("qx12",), ("qx", "12"))]


def test_an_umlaut_may_be_spelt_out_in_the_text() -> None:
    assert words_of("Müller?") == [(("muller",), ("mueller",))]


def test_a_spelt_out_umlaut_is_only_a_fallback() -> None:
    assert parse_query("Mueller") == [Clause((("mueller",),), fallback="muller")]
    assert parse_query("does") == [Clause((("does",),), fallback="dos")]


def test_scripts_without_spaces_are_cut_into_pairs() -> None:
    assert parse_query("東京都") == [
        Clause((("東京",),), is_unspaced=True),
        Clause((("京都",),), is_unspaced=True),
    ]
    assert letter_pairs("QX-12 型 และ") == ["型", "แล", "ละ"]


def test_a_latin_word_inside_such_a_script_is_a_word() -> None:
    assert Clause((("qx",),)) in parse_query("型番QX-12です")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Mu\u0308ller", "Müller"), ("ﬁle", "file"), ("ＱＸ－１２", "QX-12"), ("a\ud800b", "a?b")],
)
def test_letters_are_written_in_one_way(text: str, expected: str) -> None:
    assert normalized(text) == expected


@pytest.mark.parametrize("query", ["", "   ", "?!", "\x00", "()", "\ud800"])
def test_a_query_without_words_looks_up_nothing(query: str) -> None:
    assert parse_query(query) == []


def test_a_very_long_query_is_looked_up_in_part() -> None:
    clauses = parse_query(" ".join(f"word{number}" for number in range(100_000)))
    assert len(clauses) == MAX_CLAUSES
    assert clauses[0].spellings[0] == ("word0",)
