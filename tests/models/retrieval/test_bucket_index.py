"""A bucket's index follows its changes, and each view is one version entirely."""

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.retrieval.bucket_index import BucketIndex, BucketView
from tests.models.retrieval.bucket_samples import WIDTH, index_of, places, search, segment


def texts_of(name: str, count: int) -> list[str]:
    return [f"{name} row{row}" for row in range(count)]


def is_searchable(view: BucketView, name: str, count: int) -> bool:
    """By vector and by word, every chunk of a segment and all its neighbours in order."""
    dense = [
        places(search(view, queries=[text], count=1, use_lexical=False))[0]
        for text in texts_of(name, count)
    ]
    lexical = places(search(view, queries=[name], count=50, use_dense=False))
    expected = [(0, f"{name}.txt", row) for row in range(count)]
    return dense == expected and sorted(lexical) == expected


def is_gone(view: BucketView, name: str) -> bool:
    found = search(view, queries=[f"{name} row0"], count=1, use_lexical=False)
    return (not found or found[0].cosine < 0.99) and not search(
        view, queries=[name], use_dense=False
    )


@settings(max_examples=25)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["add", "remove", "replace", "keep up"]), st.integers(1, 4)),
        max_size=15,
    ),
    max_exact_chunks=st.sampled_from([5, 1000]),
)
def test_after_any_changes_every_chunk_is_found_and_no_other(
    steps: list[tuple[str, int]], max_exact_chunks: int
) -> None:
    index = BucketIndex(WIDTH, max_exact_chunks=max_exact_chunks, num_threads=1)
    there: dict[str, int] = {}
    gone: set[str] = set()
    for number, (step, count) in enumerate(steps, start=1):
        name = f"file{number}"
        if step == "keep up":
            index.upkeep()
            continue
        removed = [next(iter(there))] if step != "add" and there else []
        added = [] if step == "remove" else [segment(name, texts_of(name, count))]
        index.change(number, added=added, removed=removed)
        for name_gone in removed:
            del there[name_gone]
            gone.add(name_gone)
        if added:
            there[name] = count
        assert index.view.version == number
        assert index.num_chunks == sum(there.values())
    for name, count in there.items():
        assert is_searchable(index.view, name, count)
    for name in gone:
        assert is_gone(index.view, name)


def test_a_segment_that_is_described_otherwise_is_replaced() -> None:
    index = index_of(segment("a", ["one", "two"]))
    moved = segment("a", ["one", "two"], filename="renamed.txt", first_position=7)
    index.change(2, added=[moved], removed=["a"])
    assert places(search(index.view, queries=["two"], count=1)) == [(0, "renamed.txt", 8)]
    assert index.num_chunks == 2


def test_removing_what_is_not_there_is_no_error() -> None:
    index = index_of(segment("a", ["one"]))
    index.change(2, added=(), removed=["never"])
    assert index.num_chunks == 1


def test_a_view_stays_as_it_was() -> None:
    index = index_of(segment("old", texts_of("old", 3)))
    before = index.view
    index.change(2, added=[segment("new", texts_of("new", 3))], removed=["old"])
    assert is_searchable(before, "old", 3)
    assert is_gone(before, "new")
    assert is_searchable(index.view, "new", 3)
    assert is_gone(index.view, "old")


def test_a_change_that_fails_midway_leaves_the_view_and_says_that_the_index_is_not_whole() -> None:
    index = index_of(segment("old", texts_of("old", 3)))

    def breaks():  # type: ignore[no-untyped-def]
        yield segment("new", texts_of("new", 3))
        raise RuntimeError("Redis went away")

    with pytest.raises(RuntimeError):
        index.change(2, added=breaks(), removed=["old"])
    assert not index.is_whole
    assert index.view.version == 1
    assert is_searchable(index.view, "old", 3)
    assert is_gone(index.view, "new")


def test_a_search_sees_one_version_while_versions_come() -> None:
    """Each version has one file, whose every chunk has the version's word."""
    index = index_of(segment("v1", texts_of("v1", 20)), version=1, max_exact_chunks=10)

    def commit() -> None:
        for version in range(2, 60):
            index.change(
                version,
                added=[segment(f"v{version}", texts_of(f"v{version}", 20))],
                removed=[f"v{version - 1}"],
            )
            index.upkeep()

    thread = threading.Thread(target=commit)
    thread.start()
    seen = set()
    while thread.is_alive():
        view = index.view
        seen.add(view.version)
        found = search(view, queries=["row7"], count=40)
        assert {one.segment.segment_id for one in found} == {f"v{view.version}"}
        assert len(found) == 20
    thread.join()
    assert len(seen) > 3


def test_memory_is_told() -> None:
    small = index_of(segment("a", ["one"]))
    large = index_of(*(segment(f"s{n}", texts_of(f"s{n}", 200)) for n in range(20)))
    assert 0 < small.num_bytes < large.num_bytes
