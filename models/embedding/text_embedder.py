"""An embedding model in this process: texts or token ids in, unit vectors out; no queue.

Shapes: N = texts, B = rows of a batch, L = their padded length, D = width of an embedding.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
import torch
from numpy.typing import NDArray

from cluster.config import EmbedderConfig
from cluster.errors import FieldProblem, ValidationError
from models.checkpoint import CheckpointError
from models.embedding.batching import BatchLimits, BatchShape, next_batch
from models.embedding.encoder import Encoder
from models.embedding.input_tokens import InputTokens, load_tokenizer
from models.embedding.json_file import JSONFile
from models.embedding.layout import DenseLayout, EmbeddingLayout, read_layout
from models.embedding.pooling import Head, pool
from models.embedding.prefixes import Prefixes, choose_prefixes
from models.embedding.revision import revision_of

# On a CPU 1,000 to 2,000 tokens at once are the fastest (MiniLM, one core with AMX: 20 to 28
# thousand tokens/s, 17 to 22 at 8,192); the caches hold no more.
_CPU_BATCH_TOKENS = 2048
_CPU_STEP_TOKENS = 128
_GPU_STEP_TOKENS = 2048
_SEAM_TOKENS = 4  # a text's first word may be more tokens behind a prefix than without
_UNLIMITED_TOKENS = 512  # what a model is given to read that knows no limit of its own


class TextEmbedder:
    """A checkpoint's folder as a configuration has it. `compute` is for one thread at a time."""

    def __init__(self, config: EmbedderConfig, folder: Path) -> None:
        """
        Raises:
            CheckpointError: a file is missing, damaged or not supported; names it.
            ValueError: the configuration cannot be met; has both numbers.
        """
        layout = read_layout(folder)
        self._encoder = Encoder(layout.encoder_folder, config)
        backend, tokenizer_limit = load_tokenizer(
            layout.encoder_folder, is_lowercased=layout.is_lowercased
        )
        self._head = Head(layout, device=self._encoder.device)
        self._layout = layout
        self._config = config
        self.width = _width(layout, self._encoder)
        limit = _max_input_tokens(config, layout, tokenizer_limit, self._encoder.max_positions)
        self.tokens = InputTokens(backend, max_input_tokens=limit)
        self.prefixes = _prefixes(config, layout)
        self._check_room_for_text()
        self.revision = revision_of(
            layout,
            tokenizer_json=backend.to_str(),
            passage_prefix=self.prefixes.passage,
            max_input_tokens=limit,
        )
        is_cpu = self._encoder.device == "cpu"
        most = config.max_batch_tokens
        self.batch_limits = BatchLimits(
            max_tokens=min(most, _CPU_BATCH_TOKENS) if is_cpu else most,
            step_tokens=_CPU_STEP_TOKENS if is_cpu else _GPU_STEP_TOKENS,
        )

    @property
    def max_input_tokens(self) -> int:
        return self.tokens.max_input_tokens

    @property
    def tokenizer(self) -> tokenizers.Tokenizer:
        """For a chunker: without limits, padding and prefix."""
        return self.tokens.tokenizer

    @property
    def max_passage_tokens(self) -> int:
        """How many tokens a chunk's own text may have, so that nothing of it is cut."""
        prefix = self.prefixes.passage
        seam = _SEAM_TOKENS if prefix else 0
        return max(1, self.max_input_tokens - self.tokens.num_around(prefix) - seam)

    def describe(self) -> str:
        dtype = str(self._encoder.dtype).removeprefix("torch.")
        where = self._encoder.device
        if where == "cpu":
            where = f"cpu ({torch.get_num_threads()} threads)"
        poolings = "+".join(self._layout.poolings)
        return (
            f"{self._encoder.architecture} in {dtype} on {where}, {poolings} pooling: "
            f"{self.width} numbers for up to {self.max_input_tokens} tokens; "
            f"revision {self.revision}"
        )

    def cut(self, texts: Sequence[str], *, prefix: str = "", first: int = 0) -> list[list[int]]:
        """The tokens of texts behind a prefix; too long a text loses its end.

        Raises:
            ValidationError: a text is empty; names `input.i`, counted from `first`.
        """
        _refuse_empty(texts, first)
        return _with_tokens(self.tokens.cut(texts, prefix=prefix), first)

    def whole(self, texts: Sequence[str], *, first: int = 0) -> list[list[int]]:
        """The tokens of texts as they are.

        Raises:
            ValidationError: a text is empty or too long; names `input.i`, counted from `first`.
        """
        _refuse_empty(texts, first)
        rows = self.tokens.whole(texts)
        self._refuse_too_long(rows, first)
        return _with_tokens(rows, first)

    def checked(self, rows: Sequence[Sequence[int]], *, is_cut: bool) -> list[list[int]]:
        """Token ids as a client gives them: nothing is put before them or around them.

        Raises:
            ValidationError: a row is empty, has an unknown token, or is too long and not to be cut.
        """
        limit = self.max_input_tokens
        _refuse_empty(rows, 0)
        if not is_cut:
            self._refuse_too_long(rows, 0)
        for index, row in enumerate(rows):
            if max(row) >= self._encoder.vocab_size or min(row) < 0:
                size = self._encoder.vocab_size
                wrong = next(token_id for token_id in row if not 0 <= token_id < size)
                message = f"token ids must be below {size}; given {wrong}"
                raise _refusal(index, message, kind="out_of_range")
        return [list(row[:limit]) for row in rows]

    def compute(self, rows: Sequence[Sequence[int]], shape: BatchShape) -> NDArray[np.float32]:
        """The vectors [N, D] of one batch: rows of tokens, of which none is longer than `length`.

        Numbers that are not finite come out as they are: they are of one row, not of all.
        """
        assert len(rows) == shape.num_texts <= shape.num_rows
        length = shape.length
        if self._encoder.max_positions is not None:
            length = min(length, self._encoder.max_positions)
        ids_BL = np.full((shape.num_rows, length), self._encoder.pad_token_id, dtype=np.int64)
        lengths_B = np.ones(shape.num_rows, dtype=np.int64)  # a row of padding is one such token
        for index, row in enumerate(rows):
            ids_BL[index, : len(row)] = row
            lengths_B[index] = len(row)
        device = self._encoder.device
        lengths = torch.from_numpy(lengths_B).to(device)
        hidden_BLW = self._encoder(torch.from_numpy(ids_BL).to(device), lengths)
        with torch.inference_mode():
            pooled_BD = pool(hidden_BLW, lengths, self._layout.poolings)
            vectors_BD: NDArray[np.float32] = self._head(pooled_BD).cpu().numpy()
        return vectors_BD[: shape.num_texts]

    def embed_tokens(self, rows: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        """The vectors [N, D] of any number of texts, batch by batch."""
        vectors_ND = np.empty((len(rows), self.width), dtype=np.float32)
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        start = 0
        while start < len(order):
            shape = next_batch([len(rows[index]) for index in order[start:]], self.batch_limits)
            chosen = order[start : start + shape.num_texts]
            vectors_ND[chosen] = self.compute([rows[index] for index in chosen], shape)
            start += shape.num_texts
        return vectors_ND

    def _refuse_too_long(self, rows: Sequence[Sequence[int]], first: int) -> None:
        limit = self.max_input_tokens
        for index, row in enumerate(rows, first):
            if len(row) > limit:
                message = f"has {len(row)} tokens; the model reads at most {limit}"
                raise _refusal(index, message, kind="too_long")

    def _check_room_for_text(self) -> None:
        for name in ("query", "passage"):
            taken = self.tokens.num_around(getattr(self.prefixes, name))
            if taken >= self.max_input_tokens:
                raise ValueError(
                    f"{name}_prefix and special tokens take {taken} tokens of max_input_tokens "
                    f"({self.max_input_tokens}): no room for a text"
                )


def _refuse_empty(inputs: Sequence[Sequence[object]], first: int) -> None:
    for index, item in enumerate(inputs, first):
        if not item:
            raise _refusal(index, "must not be empty")


def _with_tokens(rows: list[list[int]], first: int) -> list[list[int]]:
    for index, row in enumerate(rows, first):
        if not row:
            raise _refusal(index, "has no tokens")
    return rows


def _refusal(index: int, message: str, *, kind: str = "value_error") -> ValidationError:
    return ValidationError([FieldProblem(loc=("input", index), message=message, kind=kind)])


def _width(layout: EmbeddingLayout, encoder: Encoder) -> int:
    """
    Raises:
        CheckpointError: the layers do not fit onto each other.
    """
    if layout.token_width not in (None, encoder.width):
        raise CheckpointError(
            f"{layout.encoder_folder}: the pooling expects vectors of {layout.token_width} "
            f"numbers, but config.json has hidden_size {encoder.width}"
        )
    width = encoder.width * len(layout.poolings)
    for entry in layout.head:
        if isinstance(entry, DenseLayout):
            if entry.num_inputs != width:
                raise CheckpointError(
                    f"{entry.folder / 'config.json'}: in_features is {entry.num_inputs}, but the "
                    f"vectors before it have {width} numbers"
                )
            width = entry.num_outputs
    return width


def _max_input_tokens(
    config: EmbedderConfig,
    layout: EmbeddingLayout,
    tokenizer_limit: int | None,
    max_positions: int | None,
) -> int:
    """The configuration's, else what the checkpoint was trained for, within what it can read.

    Raises:
        ValueError: the configuration asks for more than the model has positions.
    """
    wanted = config.max_input_tokens
    if wanted is not None and max_positions is not None and wanted > max_positions:
        raise ValueError(
            f"max_input_tokens ({wanted}) is more than the checkpoint's {max_positions} positions"
        )
    limit = wanted or layout.max_input_tokens or tokenizer_limit
    if limit is None:
        return max_positions or _UNLIMITED_TOKENS
    return min(limit, max_positions or limit)


def _prefixes(config: EmbedderConfig, layout: EmbeddingLayout) -> Prefixes:
    """
    Raises:
        CheckpointError: there is a prefix, and the checkpoint wants it out of the pooling.
    """
    model_config = JSONFile.read(layout.encoder_folder / "config.json")
    names = (str(layout.encoder_folder), model_config.text("_name_or_path") or "")
    prefixes = choose_prefixes(config, layout, names=names)
    if (prefixes.query or prefixes.passage) and not layout.includes_prompt:
        raise CheckpointError(
            f"{layout.encoder_folder}: include_prompt: false is not supported with a prefix"
        )
    return prefixes
