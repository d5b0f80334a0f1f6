"""JSON and JSON lines as blocks: one per record, each field with its path."""

import json
from collections.abc import Iterator
from typing import BinaryIO

import orjson

from models.documents.block import Block
from models.documents.errors import UnreadableDocumentError
from models.documents.plain_text import open_text
from models.documents.records import below_heading, record_blocks

_MAX_LINE_CHARS = 2**24


def read_json(value: object) -> Iterator[Block]:
    """A decoded file. A list's items are its records; so are those of an object's lists of
    objects, below its own fields."""
    if isinstance(value, list):
        yield from _records(value, heading="")
        return
    assert isinstance(value, dict), "a file of one scalar is plain text"
    lists = {name: item for name, item in value.items() if _is_list_of_objects(item)}
    yield from record_blocks(_fields({k: v for k, v in value.items() if k not in lists}))
    for name, items in lists.items():
        yield from below_heading(_records(items, heading=name), name)


def read_json_lines(file: BinaryIO) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: it is not text, or a line is not JSON.
    """
    text_file = open_text(file)
    number = 0
    while line := text_file.readline(_MAX_LINE_CHARS):
        number += 1
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise UnreadableDocumentError(f"Line {number} is not JSON: {error}.") from error
        yield from record_blocks(_fields(value))


def _records(items: list[object], *, heading: str) -> Iterator[Block]:
    for item in items:
        yield from record_blocks(_fields(item), heading=heading)


def _is_list_of_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(x, dict) for x in value)


def _fields(value: object) -> Iterator[tuple[str, str]]:
    """Every scalar with its path, in the file's order; lists of scalars on one line."""
    stack: list[tuple[str, object]] = [("", value)]
    while stack:
        path, item = stack.pop()
        if isinstance(item, dict):
            children = [(f"{path}.{name}" if path else name, child) for name, child in item.items()]
            stack += reversed(children)
        elif isinstance(item, list) and any(isinstance(child, dict | list) for child in item):
            stack += reversed([(f"{path}[{i}]", child) for i, child in enumerate(item)])
        elif isinstance(item, list):
            yield path, ", ".join(_scalar(child) for child in item)
        else:
            yield path, _scalar(item)


def _scalar(value: object) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)
