"""How a running generation is written down: the interface of the answer formats.

One module per endpoint that generates implements it; `responses` sends what they write.
"""

import time
import uuid
from collections.abc import Mapping
from typing import Protocol

import orjson

from cluster.errors import ServingError
from cluster.openai_schema.usage import Usage
from deployments.ingress.choice import Piece

DONE = b"data: [DONE]\n\n"


class Answer(Protocol):
    """The bytes of one answer. Streamed: opening, chunks, closing. Whole: add each, then whole."""

    def opening(self) -> bytes:
        """Events before any text."""
        ...

    def chunk(self, piece: Piece) -> bytes:
        """The events of one piece; b"" when it has nothing to show."""
        ...

    def closing(self, usage: Usage) -> bytes:
        """Events after the last piece."""
        ...

    def failure(self, error: ServingError) -> bytes:
        """The last event of a stream that fails midway."""
        ...

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        ...

    def whole(self, usage: Usage) -> bytes:
        """The JSON body of everything added."""
        ...


def new_id(prefix: str, *, separator: str = "-") -> str:
    return f"{prefix}{separator}{uuid.uuid4().hex}"


def unix_time() -> int:
    return int(time.time())


def event(value: Mapping[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"


def typed_event(value: Mapping[str, object]) -> bytes:
    """A server-sent event whose name is its `type`, as the newer APIs send them."""
    name = value["type"]
    assert isinstance(name, str)
    return b"event: " + name.encode() + b"\n" + event(value)


def error_event(error: ServingError) -> bytes:
    """How a stream of completion chunks fails: this event, and no [DONE]."""
    return event({"error": error.openai_error()})
