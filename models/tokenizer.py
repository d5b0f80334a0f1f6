"""A checkpoint's tokenizer: text to ids, ids to text, and the true bytes behind each id.

Knows `tokenizer.json` and the special-token entries beside it; does not know chat templates.

Special tokens written out in a text ("<|eot_id|>") are encoded as those tokens wherever they
appear, in user text too. That is what vLLM, TGI and transformers do by default; a chat template
could not work otherwise, since it produces one string.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path
from typing import Self

import tokenizers

_SPACE_SYMBOL = "▁"
SPECIAL_TOKEN_NAMES = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


class TokenizerError(ValueError):
    """A tokenizer that cannot be used; names the file."""


class LeadingSpace(Enum):
    """What decoding does to the space that sentencepiece puts before a text."""

    KEEP = auto()
    STRIP_ONE = auto()  # one space at the start of the text
    STRIP_FIRST_TOKEN = auto()  # every space in the first token


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderStyle:
    """How tokens become text. Not byte level means sentencepiece: "▁" is a space, <0xE2> a byte."""

    is_byte_level: bool
    leading_space: LeadingSpace = LeadingSpace.KEEP


class Tokenizer:
    """A `tokenizers.Tokenizer` with tables for incremental decoding. Safe to use from threads."""

    def __init__(
        self, backend: tokenizers.Tokenizer, *, special_tokens: Mapping[str, str] | None = None
    ) -> None:
        """`special_tokens`: names as templates know them ("bos_token") to their text.

        Raises:
            TokenizerError: tokens cannot be turned into bytes with this kind of decoder.
        """
        self._backend = backend
        # A tokenizer.json may carry the truncation of its training run.
        backend.no_truncation()
        backend.no_padding()
        definition = json.loads(backend.to_str())
        self.style = _decoder_style(definition.get("decoder"))
        self.special_tokens = dict(special_tokens or {})
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)
        self._special_text = _alternatives(t.content for t in added.values() if t.special)
        vocab = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values(), default=-1) + 1  # the largest id plus one
        self._bytes = self._byte_table(vocab, {i: token.content for i, token in added.items()})
        #: The text of each token that is whole by itself, "" for special ones, None for tokens
        #: that are (or may be) part of a character. What the detokenizer runs on.
        self.whole_texts = tuple(self._whole_text(i) for i in range(self.vocab_size))

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Load `tokenizer.json` and the special tokens named in the files beside it.

        Raises:
            TokenizerError: a file is missing or broken.
        """
        path = folder / "tokenizer.json"
        try:
            backend = tokenizers.Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise TokenizerError(f"{path}: {error.strerror}") from error
        except Exception as error:  # the Rust side raises bare Exception
            raise TokenizerError(f"{path}: not a tokenizer: {error}") from error
        return cls(backend, special_tokens=_named_special_tokens(folder))

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Token ids; `add_special_tokens` adds what the checkpoint puts around a plain text."""
        ids: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return ids

    def as_plain_text(self, text: str) -> str:
        """The text with a space in whatever would be encoded as a special token: for a stranger's
        text, which could else end the message that it stands in and begin another."""
        return self._special_text.sub(lambda found: f"{found[0][0]} {found[0][1:]}", text)

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """The text of a whole sequence. For a growing one, see `models.detokenizer`."""
        text: str = self._backend.decode(list(token_ids), skip_special_tokens=skip_special_tokens)
        return text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that a token stands for, often part of a character; b"" for an unused id.

        Special tokens give their written form.
        """
        return self._bytes[token_id] if 0 <= token_id < self.vocab_size else b""

    def token(self, token_id: int) -> str:
        """How the vocabulary spells a token ("Ġthe"); "" for an unused id."""
        token: str | None = self._backend.id_to_token(token_id)
        return token or ""

    def token_id(self, token: str) -> int | None:
        """The id of a token by its written form."""
        token_id: int | None = self._backend.token_to_id(token)
        return token_id

    @property
    def bos_token_id(self) -> int | None:
        return self._special_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._special_id("eos_token")

    def _special_id(self, name: str) -> int | None:
        token = self.special_tokens.get(name)
        return None if token is None else self.token_id(token)

    def _byte_table(self, vocab: Mapping[str, int], added: Mapping[int, str]) -> list[bytes]:
        table = [b""] * self.vocab_size
        to_bytes = _byte_level_bytes if self.style.is_byte_level else _sentencepiece_bytes
        for token, token_id in vocab.items():
            written = added.get(token_id)
            table[token_id] = to_bytes(token) if written is None else written.encode()
        return table

    def _whole_text(self, token_id: int) -> str | None:
        if token_id in self.special_ids:
            return ""
        if not self.style.is_byte_level and self._is_byte_token(token_id):
            return None  # runs of byte tokens are decoded together
        try:
            return self._bytes[token_id].decode()
        except UnicodeDecodeError:
            return None

    def _is_byte_token(self, token_id: int) -> bool:
        token = self._backend.id_to_token(token_id)
        return token is not None and _byte_of(token) is not None


def _alternatives(texts: Iterable[str]) -> re.Pattern[str]:
    """Any of some texts, the longest that is there; nothing where there are none."""
    longest_first = sorted((text for text in texts if len(text) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _decoder_style(decoder: object) -> DecoderStyle:
    parts = _flat_decoders(decoder)
    kinds = [part.get("type") for part in parts]
    if "ByteLevel" in kinds:
        return DecoderStyle(is_byte_level=True)
    if "Metaspace" in kinds:
        metaspace = parts[kinds.index("Metaspace")]
        never = metaspace.get("prepend_scheme", "always") == "never"
        leading = LeadingSpace.KEEP if never else LeadingSpace.STRIP_FIRST_TOKEN
        return DecoderStyle(is_byte_level=False, leading_space=leading)
    replaces_space = any(
        part.get("type") == "Replace" and part.get("pattern") == {"String": _SPACE_SYMBOL}
        for part in parts
    )
    if replaces_space:
        strips = any(part.get("type") == "Strip" and part.get("start") == 1 for part in parts)
        leading = LeadingSpace.STRIP_ONE if strips else LeadingSpace.KEEP
        return DecoderStyle(is_byte_level=False, leading_space=leading)
    raise TokenizerError(
        f"tokenizer.json: the decoder {kinds or None} is not supported; byte-level BPE and "
        "sentencepiece styles are"
    )


def _flat_decoders(decoder: object) -> list[dict[str, object]]:
    if not isinstance(decoder, dict):
        return []
    if decoder.get("type") == "Sequence":
        return [flat for part in decoder["decoders"] for flat in _flat_decoders(part)]
    return [decoder]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's byte alphabet: printable bytes stand for themselves, others for 256, 257, …"""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {chr(byte): byte for byte in printable}
    others = (byte for byte in range(256) if byte not in set(printable))
    alphabet.update({chr(256 + position): byte for position, byte in enumerate(others)})
    return alphabet


_BYTE_OF_CHAR = _byte_level_alphabet()


def _byte_level_bytes(token: str) -> bytes:
    try:
        return bytes([_BYTE_OF_CHAR[char] for char in token])
    except KeyError:
        return token.encode()  # not written in the alphabet: an added word


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _byte_of(token)
    return token.replace(_SPACE_SYMBOL, " ").encode() if byte is None else bytes([byte])


def _byte_of(token: str) -> int | None:
    """The byte that "<0xE2>" stands for."""
    if len(token) != 6 or not token.startswith("<0x") or not token.endswith(">"):
        return None
    try:
        return int(token[3:5], 16)
    except ValueError:
        return None


def _named_special_tokens(folder: Path) -> dict[str, str]:
    named: dict[str, str] = {}
    for file_name in ("special_tokens_map.json", "tokenizer_config.json"):
        for name, value in read_json_object(folder / file_name).items():
            if name not in SPECIAL_TOKEN_NAMES:
                continue
            text = value.get("content") if isinstance(value, dict) else value
            if isinstance(text, str):
                named[name] = text
    return named


def read_json_object(path: Path) -> dict[str, object]:
    """A JSON object from an optional file; {} when there is none.

    Raises:
        TokenizerError: the file is there but does not hold a JSON object.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path}: {error}") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: the top level must be an object")
    return value
