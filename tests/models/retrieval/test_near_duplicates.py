"""Results do not repeat each other."""

from cluster.types import Chunk
from models.retrieval.near_duplicates import FoundText, without_repetition


def text(
    tag: str, words: str | None = None, *, at: tuple[int, int] = (0, 9), of: str = ""
) -> FoundText[str]:
    chunk = Chunk(text=tag if words is None else words, start=at[0], end=at[1])
    return FoundText(tag, of or tag, chunk)


def kept(*found: FoundText[str], count: int = 10) -> list[str]:
    return [one.tag for one in without_repetition(found, count)]


def test_the_same_words_are_dropped_however_they_are_written() -> None:
    assert kept(text("a", "The pump."), text("b", "the  PUMP"), text("c", "a pump")) == ["a", "c"]


def test_a_number_makes_a_difference() -> None:
    assert kept(text("a", "QX-12: 45 Nm"), text("b", "QX-12: 48 Nm")) == ["a", "b"]


def test_texts_without_words_are_the_same_only_when_equal() -> None:
    assert kept(text("a", "…"), text("b", "—"), text("c", "…")) == ["a", "b"]


def test_overlapping_neighbours_come_after_all_others() -> None:
    assert kept(
        text("first", at=(0, 1000), of="x"),
        text("half of it again", at=(500, 1500), of="x"),
        text("beside it", at=(1000, 2000), of="x"),
        text("elsewhere", at=(0, 1000), of="y"),
    ) == ["first", "beside it", "elsewhere", "half of it again"]


def test_a_small_overlap_is_no_repetition() -> None:
    assert kept(
        text("a", at=(0, 1000), of="x"),
        text("b", at=(900, 1900), of="x"),
        text("c", at=(5000, 6000), of="x"),
    ) == ["a", "b", "c"]


def test_overlapping_ones_fill_up_what_is_asked_for() -> None:
    texts = [text(str(n), at=(500 * n, 500 * n + 1000), of="x") for n in range(6)]
    assert kept(*texts, count=3) == ["0", "2", "4"]
    assert kept(*texts, count=5) == ["0", "2", "4", "1", "3"]
