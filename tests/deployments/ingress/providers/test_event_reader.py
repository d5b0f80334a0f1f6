from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.ingress.providers.event_reader import EventReader, EventTooLargeError


def read(*chunks: bytes, **how: Any) -> list[bytes]:
    reader = EventReader(**how)
    return [event for chunk in chunks for event in reader.feed(chunk)]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_events_end_with_an_empty_line(end: bytes) -> None:
    text = b"data: one" + end + end + b"data:two" + end + end
    assert read(text + b"data: three" + end) == [b"one", b"two"]


def test_lines_of_data_are_joined_and_other_fields_are_skipped() -> None:
    text = b": comment\nevent: x\nid: 7\ndata: one\ndata: two\ndata\nnonsense\n\n\n: only\n\n"
    assert read(text) == [b"one\ntwo\n"]


@given(
    lines=st.lists(st.sampled_from([b"data: a", b"data: bb", b": c", b"", b"", b"event: e"])),
    ends=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    cuts=st.lists(st.integers(0, 200)),
)
def test_however_a_stream_is_cut_its_events_are_the_same(
    lines: list[bytes], ends: bytes, cuts: list[int]
) -> None:
    text = b"".join(line + ends for line in lines) + b"data: last" + ends + ends + b": end" + ends
    places = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    chunks = [text[a:b] for a, b in pairwise(places)]
    assert read(*chunks) == read(text)


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 200],
        [b"data: xxxxxx"] + [b"x" * 10] * 20,
        [b"data: xxxx\n"] * 40,
        [b": " + b"x" * 200 + b"\n"],
    ],
)
def test_an_event_has_a_largest_size(chunks: list[bytes]) -> None:
    with pytest.raises(EventTooLargeError):
        read(*chunks, max_event_bytes=100)


def test_many_small_events_are_no_large_one() -> None:
    assert len(read(b"data: xxxx\n\n" * 1000, max_event_bytes=100)) == 1000
