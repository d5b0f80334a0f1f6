import io

import orjson
import pytest

from models.documents.errors import UnreadableDocumentError
from models.documents.json_records import read_json, read_json_lines


def texts(value: object) -> list[tuple[str, str]]:
    return [(block.heading, block.text.strip()) for block in read_json(value)]


def test_each_item_of_a_list_is_a_record() -> None:
    value = [{"name": "Ann", "tags": ["a", "b"], "age": 5, "ok": True, "none": None}, "text", 3]
    assert texts(value) == [
        ("", "name: Ann\ntags: a, b\nage: 5\nok: true"),
        ("", "text"),
        ("", "3"),
    ]


def test_fields_have_their_paths() -> None:
    value = {"a": {"b": {"c": "deep"}}, "list": [{"x": 1}, {"x": 2}], "mixed": [1, [2, 3]]}
    assert texts(value) == [
        ("", "a.b.c: deep\nmixed[0]: 1\nmixed[1]: 2, 3"),
        ("list", "list\n\nx: 1"),
        ("list", "x: 2"),
    ]


def test_lines_are_records() -> None:
    data = b'{"name": "Ann"}\n\n{"name": "B\xc3\xb6b"}\n'
    blocks = list(read_json_lines(io.BytesIO(data)))
    assert [block.text.strip() for block in blocks] == ["name: Ann", "name: Böb"]


def test_a_line_that_is_not_json_is_refused_with_its_number() -> None:
    with pytest.raises(UnreadableDocumentError, match="Line 2 is not JSON"):
        list(read_json_lines(io.BytesIO(b'{"a": 1}\n{"a": \n')))


def test_deep_nesting_does_no_harm() -> None:
    depth = 1000
    value = orjson.loads('{"a":' * depth + "1" + "}" * depth)
    assert texts(value)[0][1].endswith(".a: 1")
