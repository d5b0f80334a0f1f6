"""Pieces of a block that are not divided further: sentences, lines, a few words.

Splits at paragraphs; what is too large of these at sentences, then at lines, at words, and in the
middle of a word when it must. Each step looks at a character a bounded number of times, so that
text without any spaces (Chinese, base64) takes no longer than other text.

Hard-wrapped text has line ends within sentences: a sentence counts more than a line here.
"""

import re
import unicodedata
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tokenizers

from models.documents.block import Block, Boundary

#: Where tokens are longer than this on average (base64 is one unknown token to some tokenizers),
#: characters count: nobody wants a passage of a million characters.
CHARS_PER_TOKEN = 12

_LEVELS: tuple[tuple[Boundary, re.Pattern[str]], ...] = (
    (Boundary.PARAGRAPH, re.compile(r"\n[^\S\n]*+\n\s*+")),
    (
        Boundary.SENTENCE,
        re.compile(
            r"(?<=[.!?…])[\"')\]»”’]{0,3}\s++(?=[^a-z])"  # "3.5" and "e.g. this" do not end one
            r"|(?<=[。！？｡])[\"'」』）”’]{0,3}"
            r"|(?<=[।؟۔])\s*+"
        ),
    ),
    (Boundary.LINE, re.compile(r"\n\s*+")),
)
_WORD = re.compile(r"\s+")
_JOINERS = frozenset("\u200d\u200c\ufe0e\ufe0f")
_MAX_COMBINING = 32  # a character with more marks than this is divided


@dataclass(frozen=True, slots=True, kw_only=True)
class Atom:
    """A piece of a file's text: `start` and `end` count characters of the whole text."""

    start: int
    end: int
    size: int  # tokens
    boundary: Boundary  # in front of it
    block: Block
    is_first: bool  # of its block


@dataclass(frozen=True, slots=True)
class _Span:
    """A part of a block's text, with the white space behind it."""

    start: int
    end: int
    boundary: Boundary


class AtomSplitter:
    """Divides blocks into atoms of at most `max_size` tokens, as one tokenizer counts."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, max_size: int) -> None:
        self._tokenizer = tokenizer
        self._max_size = max_size

    def atoms(self, block: Block, *, offset: int) -> Iterator[Atom]:
        """`offset`: the characters of the file's text before the block."""
        text = block.text
        start = len(text) - len(text.lstrip())
        spans = self._divide(text, _Span(start, len(text), block.boundary), level=0)
        for index, (span, size) in enumerate(spans):
            yield Atom(
                start=offset + span.start,
                end=offset + span.end,
                size=size,
                boundary=span.boundary,
                block=block,
                is_first=index == 0,
            )

    def _divide(self, text: str, whole: _Span, *, level: int) -> Iterator[tuple[_Span, int]]:
        """Atoms with their sizes. A span of white space alone has none."""
        if level == len(_LEVELS):
            spans = self._words(text, whole)
        else:
            boundary, pattern = _LEVELS[level]
            cuts = [match.end() for match in pattern.finditer(text, whole.start, whole.end)]
            spans = list(_split(whole, cuts, boundary))
        spans = [span for span in spans if not text[span.start : span.end].isspace()]
        for span, size in zip(spans, self._sizes(text, spans), strict=True):
            if size <= self._max_size or level == len(_LEVELS):
                yield span, size
            else:
                yield from self._divide(text, span, level=level + 1)

    def _sizes(self, text: str, spans: Sequence[_Span]) -> list[int]:
        texts = [text[span.start : span.end] for span in spans]
        encodings = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [
            max(len(encoding), -(-len(piece.rstrip()) // CHARS_PER_TOKEN), 1)
            for piece, encoding in zip(texts, encodings, strict=True)
        ]

    def _words(self, text: str, whole: _Span) -> list[_Span]:
        """As many words as fit, again and again; a word that does not fit alone is cut."""
        encoding = self._tokenizer.encode(text[whole.start : whole.end], add_special_tokens=False)
        token_starts = sorted(whole.start + start for start, _ in encoding.offsets)
        words = [match.end() for match in _WORD.finditer(text, whole.start, whole.end)]
        cuts: list[int] = []
        boundaries: list[Boundary] = []
        position = whole.start
        while True:
            limit = position + self._max_size * CHARS_PER_TOKEN
            token = bisect_left(token_starts, position) + self._max_size
            if token < len(token_starts):
                limit = max(position + 1, min(limit, token_starts[token]))
            if limit >= whole.end:
                break
            word = bisect_right(words, limit) - 1
            is_word = word >= 0 and words[word] > position
            position = words[word] if is_word else _whole_character(text, position, limit)
            cuts.append(position)
            boundaries.append(Boundary.WORD if is_word else Boundary.CHARACTER)
        starts = [whole.start, *cuts]
        return [
            _Span(start, end, boundary)
            for start, end, boundary in zip(
                starts, [*cuts, whole.end], [whole.boundary, *boundaries], strict=True
            )
            if start < end
        ]


def _split(whole: _Span, cuts: Sequence[int], boundary: Boundary) -> Iterator[_Span]:
    start, front = whole.start, whole.boundary
    for cut in cuts[bisect_left(cuts, whole.start + 1) :]:
        if start < cut < whole.end:
            yield _Span(start, cut, front)
            start, front = cut, boundary
    if start < whole.end:
        yield _Span(start, whole.end, front)


def _whole_character(text: str, start: int, cut: int) -> int:
    """A place at `cut` or shortly before it that divides no character from its marks."""
    for place in range(cut, max(start, cut - _MAX_COMBINING), -1):
        is_joined = text[place] in _JOINERS or text[place - 1] in _JOINERS
        if not is_joined and not unicodedata.combining(text[place]):
            return place
    return cut
