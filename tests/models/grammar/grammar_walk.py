"""Real tokenizers, and a model without taste: it chooses allowed tokens at random."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from cluster.types import GrammarKind, GrammarSpec
from models.grammar.compiler import GrammarCompiler, GrammarLimits, GrammarMatcher, mask_words
from models.tokenizer import Tokenizer

SPECIAL_TOKENS = ["<|end|>", "<|eot|>", "<|tool|>"]
EOS_TOKEN_IDS = frozenset({0, 1})
TOOL_TOKEN_ID = 2
PADDING = 45  # rows of the model's vocabulary that the tokenizer does not have
_CORPUS = [
    '{"name": "Ada", "age": 36, "tags": ["x", "y"], "active": true, "score": null}',
    "[1, 2.5, -3e10, false]",
    "The quick brown fox jumps over the lazy dog. It was, in the end, a good day!",
    "naïve café, Größe, 日本語のテキスト, emoji 😀🎉, кириллица",
    '{"a":{"b":[{"c":"d"}]}}\n  {"id": 1234567890}\n\t"key": "value",',
    "2024-02-29T12:30:45Z user@example.com https://example.com/a?b=c 192.168.0.1",
]


def byte_level_tokenizer(path: Path) -> Path:
    """A small byte-level BPE, as Llama 3 and Qwen have it; tokens split characters."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.save(str(path))
    return path


def sentencepiece_tokenizer(path: Path) -> Path:
    """Llama 2's style: "▁" for a space, one token for each byte, a space before every text."""
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)]
    pieces = ["▁", *map(chr, range(0x21, 0x7F)), "▁the", "▁{", '":', '",', "▁12", "true", "é", "日"]
    vocab = {token: i for i, token in enumerate([*SPECIAL_TOKENS, *bytes_, *pieces])}
    merges = [("▁", "{"), ('"', ":"), ('"', ",")]
    tokenizer = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token=None)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1),
        ]
    )
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    tokenizer.save(str(path))
    return path


def load_tokenizer(path: Path) -> Tokenizer:
    return Tokenizer(tokenizers.Tokenizer.from_file(str(path)))


def allowed_tokens(matcher: GrammarMatcher, vocab_size: int) -> list[int]:
    """The token ids that a mask allows; also checks that no bit beyond the vocabulary is set."""
    row = np.full(mask_words(vocab_size), -1, dtype=np.int32)
    matcher.fill_mask(row)
    allowed = np.flatnonzero(np.unpackbits(row.view(np.uint8), bitorder="little"))
    assert not allowed.size or allowed[-1] < vocab_size
    return [int(token_id) for token_id in allowed]


@dataclass(frozen=True, slots=True)
class Walk:
    """What came out: the text's bytes, and whether it ended by itself."""

    data: bytes
    token_ids: list[int]
    is_complete: bool

    @property
    def text(self) -> str:
        return self.data.decode()


class Walker:
    """Chooses among the allowed tokens; after `num_free` ones it prefers those that close."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, *, num_free: int = 40) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._num_free = num_free
        self._cost = [self._closing_cost(tokenizer.token_bytes(i)) for i in range(vocab_size)]

    def walk(self, matcher: GrammarMatcher, seed: int, *, max_tokens: int = 600) -> Walk:
        chooser = random.Random(seed)
        token_ids: list[int] = []
        for _ in range(max_tokens):
            token_id = self._choose(allowed_tokens(matcher, self._vocab_size), token_ids, chooser)
            matcher.accept(token_id)
            if token_id in EOS_TOKEN_IDS:
                return Walk(self._data(token_ids), token_ids, is_complete=True)
            token_ids.append(token_id)
        return Walk(self._data(token_ids), token_ids, is_complete=False)

    def _choose(self, allowed: list[int], so_far: list[int], chooser: random.Random) -> int:
        assert allowed, f"nothing may follow {self._data(so_far)!r}"
        if len(so_far) < self._num_free:
            # Many tokens continue a string and few end it: now and then, weigh by kind instead.
            if chooser.random() < 0.5:
                return chooser.choice(allowed)
            closers = [t for t in allowed if self._cost[t] <= 1]
            return chooser.choice(closers or allowed)
        cheapest = min(self._cost[token_id] for token_id in allowed)
        return chooser.choice([t for t in allowed if self._cost[t] == cheapest])

    def _data(self, token_ids: list[int]) -> bytes:
        return b"".join(self._tokenizer.token_bytes(token_id) for token_id in token_ids)

    def _closing_cost(self, token: bytes) -> int:
        order = (b'"', b"]", b"}", b"0", b"1", b",", b":", b" ")
        return order.index(token) + 1 if token in order else 20


class Rig:
    """A compiler, its tokenizer and a walker."""

    def __init__(self, tokenizer_file: Path, limits: GrammarLimits | None = None) -> None:
        self.tokenizer = load_tokenizer(tokenizer_file)
        self.vocab_size = self.tokenizer.vocab_size + PADDING
        self.compiler = GrammarCompiler(
            tokenizer_file,
            vocab_size=self.vocab_size,
            eos_token_ids=EOS_TOKEN_IDS,
            limits=limits,
        )
        self.walker = Walker(self.tokenizer, self.vocab_size)

    def matcher(self, kind: GrammarKind, text: object) -> GrammarMatcher:
        written = text if isinstance(text, str) else json.dumps(text)
        return self.compiler.compile(GrammarSpec(kind=kind, text=written)).matcher()

    def texts(self, kind: GrammarKind, text: object, *, count: int = 8) -> list[str]:
        walks = [self.walker.walk(self.matcher(kind, text), seed) for seed in range(count)]
        texts = [walk.text for walk in walks if walk.is_complete]
        assert texts, "no walk came to an end"
        return texts

    def takes(self, kind: GrammarKind, grammar: object, text: str) -> bool:
        """Whether a text, in the longest tokens that the masks allow, is a whole output."""
        matcher = self.matcher(kind, grammar)
        left = text.encode()
        while left:
            allowed = allowed_tokens(matcher, self.vocab_size)
            spelled = [(len(self._bytes(t)), t) for t in allowed if t not in EOS_TOKEN_IDS]
            fitting = [(n, t) for n, t in spelled if left.startswith(self._bytes(t))]
            if not fitting:
                return False
            length, token_id = max(fitting)
            matcher.accept(token_id)
            left = left[length:]
        return matcher.may_end

    def _bytes(self, token_id: int) -> bytes:
        return self.tokenizer.token_bytes(token_id)
