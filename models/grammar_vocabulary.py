"""A tokenizer's vocabulary as llguidance sees it: the bytes of each token, and what is special."""

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
        self.eos_token_id = eos_token_ids[0]
        # b"" for ids above the tokenizer's: a token without bytes is never allowed.
        self.tokens = [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)]
        self.special_token_ids = sorted({*tokenizer.special_ids, *eos_token_ids})

    def __call__(self, text: str) -> list[int]:
        """Tokens of a text in the middle of an output, for forced tokens."""
        token_ids = self._tokenizer.encode(text, add_special_tokens=False)
        if b"".join(self.tokens[token_id] for token_id in token_ids) == text.encode():
            return token_ids
        return []  # sentencepiece put a space before it; no forced tokens then


def load_vocabulary(
    tokenizer_file: Path, *, vocab_size: int, eos_token_ids: frozenset[int]
) -> LLTokenizer:
    """The vocabulary of a model whose logits are `vocab_size` wide.

    Raises:
        ValueError: the tokenizer does not fit the model; names the numbers.
    """
    tokenizer = Tokenizer(tokenizers.Tokenizer.from_file(str(tokenizer_file)))
    if tokenizer.vocab_size > vocab_size:
        raise ValueError(
            f"{tokenizer_file}: {tokenizer.vocab_size} tokens do not fit a vocabulary of "
            f"{vocab_size}"
        )
    eos = sorted(eos_token_ids)
    if not eos or eos[0] < 0 or eos[-1] >= vocab_size:
        raise ValueError(f"end-of-sequence tokens {eos} are not within 0…{vocab_size - 1}")
    vocabulary = _Vocabulary(tokenizer, vocab_size=vocab_size, eos_token_ids=eos)
    return LLTokenizer(vocabulary, eos_token=eos)
