"""What the service and a process that reads files say to each other."""

import msgspec

from cluster.types import Chunk
from models.documents.settings import ChunkSettings


class ReaderSetup(msgspec.Struct, frozen=True, kw_only=True):
    """The first message to the process; `Ready` answers it."""

    memory_bytes: int
    timeout_s: float


class TokenizerSent(msgspec.Struct, frozen=True, kw_only=True, tag="tokenizer"):
    """A tokenizer that the following orders may name; not answered."""

    number: int
    tokenizer_json: str


class ReadOrder(msgspec.Struct, frozen=True, kw_only=True, tag="read"):
    """Read the file whose descriptor comes with the byte after this message.

    Answered by pieces, and `Finished` or `Refused`.
    """

    filename: str
    settings: ChunkSettings | None  # without the tokenizer's JSON; None: the text is asked for
    tokenizer_number: int = 0


class Ready(msgspec.Struct, frozen=True, kw_only=True, tag="ready"):
    """The process waits for orders."""


class ChunkPiece(msgspec.Struct, frozen=True, kw_only=True, tag="chunks"):
    """The next chunks."""

    chunks: list[Chunk]


class TextPiece(msgspec.Struct, frozen=True, kw_only=True, tag="text"):
    """The next part of the text."""

    text: str


class Finished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """That was all."""


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag="refused"):
    """The file cannot be read."""

    reason: str
    is_spent: bool = False  # the process may be in a bad state, and ends


Order = TokenizerSent | ReadOrder
Answer = Ready | ChunkPiece | TextPiece | Finished | Refused
