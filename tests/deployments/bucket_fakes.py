"""Edges of the bucket pipeline whose answers can be computed in the head."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from cluster.errors import ServingError
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from cluster.types import Chunk
from models.documents.errors import UnreadableDocumentError
from models.documents.settings import ChunkSettings

WIDTH = 8


def vector_of(text: str, model: str = "m") -> np.ndarray:
    """Always the same for a text and a model."""
    digest = hashlib.sha256(f"{model} {text}".encode()).digest()
    vector = np.frombuffer(digest[: 4 * WIDTH], dtype="<u4").astype(np.float32) - 2.0**31
    return (vector / np.linalg.norm(vector)).astype(np.float32)


@dataclass
class HashEmbedder:
    """Implements `PassageEmbedder`. Fails with what `errors` has next, and waits at `gate`."""

    name: str = "m"
    revision: str = "1"
    texts: list[str] = field(default_factory=list)  # all that were embedded
    errors: list[ServingError] = field(default_factory=list)
    gate: asyncio.Event | None = None
    has_begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def facts(self) -> EmbedderFacts:
        return EmbedderFacts(
            model_name=self.name, revision=self.revision, width=WIDTH, max_input_tokens=256
        )

    async def tokenizer(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
        backend.pre_tokenizer = pre_tokenizers.Whitespace()
        return backend

    async def max_passage_tokens(self) -> int:
        return 256

    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], *, kind: InputKind
    ) -> Embeddings:
        self.has_begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        texts = [str(text) for text in inputs]
        self.texts += texts
        vectors = np.stack([vector_of(text, self.name) for text in texts])
        return Embeddings(
            vectors_ND=vectors, num_tokens=sum(map(len, texts)), revision=self.revision
        )


@dataclass
class LineReader:
    """A chunk per line. A file that begins with "broken" cannot be read."""

    filenames: list[str] = field(default_factory=list)  # of all that were read

    async def stream(
        self, path: Path, filename: str, settings: ChunkSettings
    ) -> AsyncGenerator[list[Chunk], None]:
        self.filenames.append(filename)
        text = await asyncio.to_thread(path.read_text)
        if text.startswith("broken"):
            raise UnreadableDocumentError(f"It is {text}.")
        start = 0
        for line in text.splitlines():
            yield [Chunk(text=line, start=start, end=start + len(line))]
            start += len(line) + 1
