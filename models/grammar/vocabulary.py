"""A tokenizer's vocabulary as llguidance sees it: the bytes of each token, and what is special."""

import json
from collections.abc import Callable
from pathlib import Path

import tokenizers
from llguidance import LLTokenizer, TokenizerWrapper

from models.tokenizer import Tokenizer


class _Vocabulary(TokenizerWrapper):
    """What `LLTokenizer` asks of a tokenizer (it looks for these names)."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, tokenizer: Tokenizer, *, vocab_size: int, eos_token_ids: list[int]) -> None:
        self._tokenizer = tokenizer
        self.greedy: Callable[[str], list[int]] | None = None
        self.eos_token_id = eos_token_ids[0]
        # b"" for ids above the tokenizer's: a token without bytes is never allowed.
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self._special_ids = frozenset({*tokenizer.special_ids, *eos_token_ids})
        self.special_token_ids = sorted(self._special_ids)

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text in the middle of an output: where the grammar leaves no choice of text,
        the mask allows only this spelling of it. Their bytes must be just the text's."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        is_exact = b"".join(self.tokens[token_id] for token_id in token_ids) == text.encode()
        if is_exact and self._special_ids.isdisjoint(token_ids):
            return token_ids
        assert self.greedy is not None, "nothing is encoded while the vocabulary is built"
        # A normalizer changed the text, or a token ends the sequence that is also a piece of text.
        return self.greedy(text)


def load_vocabulary(
    tokenizer_file: Path, *, vocab_size: int, eos_token_ids: frozenset[int]
) -> LLTokenizer:
    """The vocabulary of a model whose logits are `vocab_size` wide.

    Raises:
        ValueError: the tokenizer does not fit the model; names the numbers.
    """
    definition = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    backend = tokenizers.Tokenizer.from_str(json.dumps(_without_leading_space(definition)))
    tokenizer = Tokenizer(backend)
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{tokenizer_file}: {tokenizer.vocab_size} tokens do not fit a vocabulary of "
            f"{vocab_size}"
        )
    eos = sorted(eos_token_ids)
    if not eos or eos[0] < 0 or eos[-1] >= vocab_size:
        raise ValueError(f"end-of-sequence tokens {eos} are not within 0…{vocab_size - 1}")
    vocabulary = _Vocabulary(tokenizer, vocab_size=vocab_size, eos_token_ids=eos)
    built = LLTokenizer(vocabulary, eos_token=eos)
    vocabulary.greedy = built.greedy_tokenize
    return built


def _without_leading_space(part: object) -> object:
    """A tokenizer.json that puts no space before a text."""
    if isinstance(part, list):
        return [_without_leading_space(item) for item in part if not _is_prepend(item)]
    if not isinstance(part, dict):
        return part
    changed: dict[str, object] = {}
    for key, value in part.items():
        # The vocabulary and its merges are large, and no step is in there.
        is_step = key in ("normalizer", "pre_tokenizer", "normalizers", "pretokenizers")
        changed[key] = _without_leading_space(value) if is_step else value
        if is_step and _is_prepend(value):
            changed[key] = None
    if part.get("type") == "Metaspace":
        changed["prepend_scheme"] = "never"
        changed.pop("add_prefix_space", None)
    if part.get("type") == "ByteLevel":
        changed["add_prefix_space"] = False
    return changed


def _is_prepend(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") == "Prepend"
