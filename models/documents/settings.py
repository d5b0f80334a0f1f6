"""How a file is read and divided: what an embedding request and the operator choose.

`chunk_size` and `chunk_overlap` are the API's `document_chunk_size` and
`document_chunk_overlap_size`, in tokens of the embedding model. A model seldom reads as many as
are asked for (1,024 by default): a chunk then has as many as it reads, and the overlap shrinks in
proportion, so that the default overlap of a half stays a half.
"""

from enum import StrEnum

import msgspec

#: Smaller chunks say nothing; also as many as one character may need.
MIN_CHUNK_TOKENS = 16


class Loader(StrEnum):
    """How files become text."""

    DEFAULT = "default"  # by what they are
    INTERCOM = "intercom"  # JSON files are articles of Intercom's help centre


class ChunkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How text is divided for one embedding model."""

    tokenizer_json: str  # the model's own, as `tokenizers.Tokenizer.to_str` writes it
    max_tokens: int  # that the model reads of a passage, prefix and special tokens taken off
    chunk_size: int = 1024
    chunk_overlap: int = 512
    loader: Loader = Loader.DEFAULT

    def __post_init__(self) -> None:
        if self.max_tokens < MIN_CHUNK_TOKENS:
            raise ValueError(
                f"the embedding model reads {self.max_tokens} tokens of a passage; chunks have at "
                f"least {MIN_CHUNK_TOKENS}"
            )
        if self.chunk_size < MIN_CHUNK_TOKENS:
            raise ValueError(f"chunk_size ({self.chunk_size}) must be at least {MIN_CHUNK_TOKENS}")
        if not 0 <= self.chunk_overlap < self.chunk_size:
            raise ValueError(
                f"chunk_overlap ({self.chunk_overlap}) must be at least 0 and less than "
                f"chunk_size ({self.chunk_size})"
            )

    @property
    def capacity(self) -> int:
        """Tokens in a chunk, at most."""
        return min(self.chunk_size, self.max_tokens)

    @property
    def overlap(self) -> int:
        """Tokens that a chunk repeats of the one before, at most. Never more than three quarters of
        a chunk, so that each brings something new."""
        scaled = self.chunk_overlap * self.capacity // self.chunk_size
        return min(scaled, self.capacity * 3 // 4)


class ReadingLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What one file may cost."""

    max_bytes: int  # larger ones are refused
    timeout_s: float  # until the first chunks, and more as they come
    memory_bytes: int  # of the process that reads it
