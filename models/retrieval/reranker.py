"""A cross-encoder: reads a query and a passage together and says how well they fit.

Any `transformers` checkpoint for sequence classification with one label, or two (then the second
means that they fit).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

_MAX_PAIR_TOKENS = 512
_BATCH_PAIRS = 16


class RerankerError(ValueError):
    """The checkpoint cannot be used as a re-ranker; the message says why."""


class Reranker:
    """A checkpoint's folder. `score` is for one thread at a time."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            RerankerError: it cannot be read, or is not a classifier of one or two labels.
        """
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                folder, dtype=torch.float32
            )
        except (OSError, ValueError, KeyError) as error:
            raise RerankerError(f"retrieval.reranker: {folder}: {error}") from error
        if model.config.num_labels not in (1, 2):
            raise RerankerError(
                f"retrieval.reranker: {folder} has {model.config.num_labels} labels; a re-ranker "
                "has one, or two of which the second means that they fit"
            )
        self._model = model.eval()
        self._max_tokens = min(_MAX_PAIR_TOKENS, self._tokenizer.model_max_length)

    @torch.inference_mode()
    def score(self, query: str, passages: Sequence[str]) -> list[float]:
        """How well each passage fits; larger is better. Long passages lose their end."""
        scores: list[float] = []
        for start in range(0, len(passages), _BATCH_PAIRS):
            batch = passages[start : start + _BATCH_PAIRS]
            inputs = self._tokenizer(
                [query] * len(batch),
                list(batch),
                padding=True,
                truncation="longest_first",  # of the passage, unless the query is longer
                max_length=self._max_tokens,
                return_tensors="pt",
            )
            logits = self._model(**inputs).logits.float()
            fits = logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0]
            scores += fits.tolist()
        return scores
