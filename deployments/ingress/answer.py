"""How a running generation is written down: the interface of the answer formats.

`chat_answer` and `completion_answer` implement it; `responses` sends what they write.
"""

import time
import uuid
from typing import Protocol

import orjson

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

    def add(self, piece: Piece) -> None:
        """Keep a piece for `whole`."""
        ...

    def whole(self, usage: Usage) -> bytes:
        """The JSON body of everything added."""
        ...


def new_id(prefix: str) -> str:
    return f"{prefix}-{uuid.uuid4().hex}"


def unix_time() -> int:
    return int(time.time())


def event(value: dict[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(value) + b"\n\n"
