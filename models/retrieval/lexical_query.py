"""From what a person wrote to the words that are looked up, without any query language.

Text and query are cut by the same analyzer: lower case, accents folded (`Müller` is `muller`).
Codes are kept together: `QX-12` asks for its parts, and for both in a row, which is worth more.
Scripts written without spaces are cut into pairs of letters.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass

MAX_CLAUSES = 64  # of one query; the first count, as a long query begins with what is asked
_MAX_QUERY_CHARACTERS = 20_000

# Han, kana, Hangul, Thai, Lao, Myanmar, Khmer: words are not (reliably) set apart by spaces.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003134f"
)
_UNSPACED_RUN = re.compile(f"[{_UNSPACED}]+")
_LETTERS_AND_DIGITS = re.compile(r"\d+|[^\W\d_]+")
_THOUSANDS = re.compile(r"(?<=\d)(?=(?:\d{3})+$)")
_UMLAUTS = str.maketrans({"ä": "ae", "ö": "oe", "ü": "ue", "Ä": "Ae", "Ö": "Oe", "Ü": "Ue"})
_SPELT_UMLAUT = re.compile(r"(?<=[aou])e")

Analyzer = Callable[[str], list[str]]  # a text to the words that the index has of it


@dataclass(frozen=True, slots=True)
class Clause:
    """One thing that is looked for: the best of its spellings counts, each some words in a row."""

    spellings: tuple[tuple[str, ...], ...]
    fallback: str = ""  # a word that is looked for where no chunk has any of these
    is_unspaced: bool = False  # pairs of letters, which stand in a field of their own


def normalized(text: str) -> str:
    """One way to write each letter: composed, without ligatures and full-width forms."""
    if text.isascii():
        return text
    text = text.encode("utf-8", "replace").decode()  # a lone surrogate is no letter
    return unicodedata.normalize("NFKC", text)


def spaced_text(text: str) -> str:
    """What is left of a text without the scripts that have no spaces."""
    return text if text.isascii() else _UNSPACED_RUN.sub(" ", text)


def letter_pairs(text: str) -> list[str]:
    """The pairs of neighbouring letters in scripts without spaces; a letter that stands alone."""
    if text.isascii():
        return []
    return [
        run[start : start + 2]
        for run in _UNSPACED_RUN.findall(text)
        for start in range(max(1, len(run) - 1))
    ]


def clauses_of(query: str, analyze: Analyzer) -> list[Clause]:
    """What a query looks for, each thing once, in the order in which it was written."""
    text = normalized(query[:_MAX_QUERY_CHARACTERS])
    clauses: dict[Clause, None] = {}
    for piece in text.split():
        clauses |= dict.fromkeys(_clauses_of_piece(piece, analyze))
    return list(clauses)[:MAX_CLAUSES]


def _clauses_of_piece(piece: str, analyze: Analyzer) -> Iterator[Clause]:
    for pair in letter_pairs(piece):
        yield Clause(((pair,),), is_unspaced=True)
    for part in spaced_text(piece).split():
        words = tuple(analyze(part))
        if len(words) == 1:
            yield _word_clause(words[0], tuple(analyze(part.translate(_UMLAUTS))))
        elif words:
            for word in words:
                yield Clause(((word,),))
            yield Clause((words, ("".join(words),)))


def _word_clause(word: str, spelt_out: tuple[str, ...]) -> Clause:
    """A word, and how else it may stand in a text: `qx12` as `QX-12`, `1234` as `1,234`, `Müller`
    as `Mueller`.
    """
    apart = _THOUSANDS.split(word) if word.isdigit() else _LETTERS_AND_DIGITS.findall(word)
    spellings = dict.fromkeys([(word,), tuple(apart), spelt_out])
    # `Mueller` as `Müller`, but not `does` as `DOS`.
    fallback = _SPELT_UMLAUT.sub("", word)
    return Clause(
        tuple(spelling for spelling in spellings if spelling),
        fallback=fallback if fallback != word else "",
    )
