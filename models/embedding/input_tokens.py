"""An embedding checkpoint's tokenizer: texts to the token ids that its model reads.

Special tokens (`[CLS] … [SEP]`, Qwen's end of text) are put around a text as the checkpoint's own
tokenizer does, and counted.
"""

from collections.abc import Sequence
from pathlib import Path

import tokenizers
import transformers
from tokenizers import normalizers

from models.checkpoint import CheckpointError
from models.embedding.encoder import one_line

# A token is seldom longer than this; of a text that has many times more than it may have, only the
# beginning is tokenized.
_MAX_CHARS_PER_TOKEN = 32
_NO_LIMIT = 10**6  # a tokenizer without a limit says 10**30


class InputTokens:
    """Tokenizes. Safe to use from threads."""

    def __init__(self, backend: tokenizers.Tokenizer, *, max_input_tokens: int) -> None:
        self.max_input_tokens = max_input_tokens
        self._whole = backend
        self._cutting = tokenizers.Tokenizer.from_str(backend.to_str())
        self._cutting.enable_truncation(max_input_tokens)

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """For counting a text's tokens, without any limit. Not to be changed."""
        return self._whole

    def num_around(self, prefix: str) -> int:
        """How many tokens special ones and a prefix take from the limit, at most."""
        return len(self._whole.encode(prefix).ids)

    def cut(self, texts: Sequence[str], *, prefix: str) -> list[list[int]]:
        """At most `max_input_tokens` of each; a longer text loses its end."""
        return self._encode(self._cutting, [prefix + text for text in texts])

    def whole(self, texts: Sequence[str]) -> list[list[int]]:
        """All tokens; of a text that is far too long, some more than `max_input_tokens`."""
        return self._encode(self._whole, texts)

    def _encode(self, backend: tokenizers.Tokenizer, texts: Sequence[str]) -> list[list[int]]:
        limit = self.max_input_tokens * _MAX_CHARS_PER_TOKEN
        encodings = backend.encode_batch_fast([text[:limit] for text in texts])
        rows: list[list[int]] = [encoding.ids for encoding in encodings]
        for index, text in enumerate(texts):
            if len(text) > limit and len(rows[index]) < self.max_input_tokens:
                rows[index] = backend.encode(text).ids  # very long words, or much white space
        return rows


def load_tokenizer(folder: Path, *, is_lowercased: bool) -> tuple[tokenizers.Tokenizer, int | None]:
    """A checkpoint's tokenizer as transformers makes it, and the limit that its files name.

    Raises:
        CheckpointError: there is none, it is damaged, or it is not one of the fast kind.
    """
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # transformers and the Rust side raise what they like
        path = _tokenizer_file(folder)
        raise CheckpointError(f"{path}: not a tokenizer: {one_line(error)}") from error
    backend = getattr(loaded, "backend_tokenizer", None)
    if not isinstance(backend, tokenizers.Tokenizer):
        raise CheckpointError(
            f"{folder}: {type(loaded).__name__} is not supported; save it as fast"
        )
    backend = tokenizers.Tokenizer.from_str(backend.to_str())
    backend.no_truncation()
    backend.no_padding()
    if is_lowercased:
        parts = [normalizers.Lowercase()]
        if backend.normalizer is not None:
            parts.append(backend.normalizer)
        backend.normalizer = normalizers.Sequence(parts)
    limit = loaded.model_max_length
    return backend, int(limit) if isinstance(limit, int | float) and limit < _NO_LIMIT else None


def _tokenizer_file(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    return path if path.exists() else folder
