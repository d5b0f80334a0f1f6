"""Lines of an input file: cut from any pieces, in bounded memory, and checked."""

import itertools
import json
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.batch_lines import InputCheck, Line, decode_line, line_blocks

URL = "/v1/embeddings"


async def lines_of(pieces: list[bytes], *, max_line_bytes: int = 1000) -> list[Line]:
    async def content() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    blocks = line_blocks(content(), max_line_bytes=max_line_bytes)
    return [line async for block in blocks for line in block]


@given(
    lines=st.lists(st.binary(max_size=12).filter(lambda data: b"\n" not in data), max_size=20),
    cuts=st.lists(st.integers(0, 300), max_size=8),
)
async def test_lines_are_the_same_whatever_pieces_they_come_in(
    lines: list[bytes], cuts: list[int]
) -> None:
    data = b"\n".join(lines)
    bounds = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    pieces = [data[a:b] for a, b in itertools.pairwise(bounds)]
    lines[:1] = [line.removeprefix(b"\xef\xbb\xbf") for line in lines[:1]]
    expected = [Line(n, line) for n, line in enumerate(lines, 1) if line.strip()]
    assert await lines_of(pieces) == expected


async def test_a_mark_at_the_beginning_is_not_part_of_the_first_line() -> None:
    assert await lines_of([b"\xef\xbb", b"\xbf{}\n{}"]) == [Line(1, b"{}"), Line(2, b"{}")]


async def test_windows_line_ends_and_blank_lines_are_no_lines() -> None:
    assert await lines_of([b"1\r\n\r\n \n2\r\n"]) == [Line(1, b"1\r"), Line(4, b"2\r")]


async def test_of_a_line_that_is_too_long_only_its_number_is_kept() -> None:
    found = await lines_of(
        [b"x" * 7, b"x" * 7, b"x\n" + b"y" * 10 + b"\n", b"z" * 11], max_line_bytes=10
    )
    assert found == [Line(1, None), Line(2, b"y" * 10), Line(3, None)]


def check(*lines: object, max_requests: int = 10) -> InputCheck:
    made = InputCheck(URL, is_served=lambda name: name in (None, "m"), max_requests=max_requests)
    made.feed([Line(n, json.dumps(line).encode()) for n, line in enumerate(lines, 1)])
    made.finish()
    return made


def line(custom_id: str = "a", **body: object) -> dict[str, object]:
    return {"custom_id": custom_id, "method": "POST", "url": URL, "body": {"input": "x", **body}}


def test_a_good_file_has_its_count_and_model() -> None:
    made = check(line("a", model="m"), line("b", model="m"))
    assert (made.errors, made.num_requests, made.model) == ([], 2, "m")


def test_all_that_is_wrong_with_a_line_is_said() -> None:
    made = check({"custom_id": 1, "method": "PUT", "url": "/x", "body": {"input": 7, "more": 1}})
    assert [error.param for error in made.errors] == [
        "custom_id",
        "method",
        "url",
        "body.input",
        "body.more",
    ]


def test_what_people_wrote_is_not_repeated_in_errors() -> None:
    messages = [{"role": "user", "content": {"zebra": "zebra"}}, "zebra", {"role": "user"}]
    chat = "/v1/chat/completions"
    made = InputCheck(chat, is_served=lambda _: True, max_requests=10)
    for content in (messages, "zebra"):
        request = {"custom_id": "a", "method": "POST", "url": chat, "body": {"messages": content}}
        made.feed([Line(1, json.dumps(request).encode())])
    assert len(made.errors) >= 2
    assert not [error for error in made.errors if "zebra" in error.message]
    assert [error.message for error in check(line(dimensions="big")).errors] == [
        'body.dimensions: must be an integer in [1, 65536]; given "big"'
    ]


def test_a_line_that_is_too_long_is_named() -> None:
    made = InputCheck(URL, is_served=lambda _: True, max_requests=10)
    made.feed([Line(4, None)])
    assert [(error.code, error.line) for error in made.errors] == [("line_too_long", 4)]


def test_more_inputs_than_openai_takes_are_refused() -> None:
    lines = [line(str(n), input=["x"] * 2048) for n in range(25)]
    made = check(*lines, max_requests=100)
    assert [error.code for error in made.errors] == ["too_many_inputs"]


def test_what_comes_after_too_many_lines_is_not_looked_at() -> None:
    made = check(*(line(str(n)) for n in range(1000)), max_requests=10)
    assert made.is_full
    assert made.num_requests == 11
    assert [error.code for error in made.errors] == ["too_many_requests"]


@pytest.mark.parametrize("text", ["a", "ä\u2028", '"quoted"', "\n"])
def test_a_checked_line_is_decoded_with_its_body_as_it_is(text: str) -> None:
    body = '{"input": "x",   "model":"m"}'
    data = f'{{"body": {body}, "custom_id": {json.dumps(text)}}}'.encode()
    request = decode_line(data)
    assert request.custom_id == text
    assert bytes(request.body) == body.encode()
