"""From a growing sequence of token ids to a growing text.

`Detokenizer` never shows half a character and `StopStringChecker` never shows half a stop string.
Neither result depends on how the tokens or the text were split into pushes.
"""

import codecs
from collections.abc import Iterable, Sequence

from models.tokenizer import LeadingSpace, Tokenizer

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


class Detokenizer:
    """Decodes one sequence, special tokens left out (but those asked for).

    The pieces together equal `tokenizer.decode(all_ids, skip_special_tokens=True)`, with one
    improvement for sentencepiece vocabularies: in a run of byte tokens with a mistake in it the
    right characters are kept, where the whole-sequence decoder gives up the run.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        continues_text: bool = False,
        shown_special_ids: frozenset[int] = frozenset(),
    ) -> None:
        """
        Args:
            continues_text: the tokens follow a text, so that a first space belongs to them.
            shown_special_ids: special tokens whose written form is part of the text.
        """
        self._tokenizer = tokenizer
        self._shown_specials = {i: tokenizer.token_bytes(i).decode() for i in shown_special_ids}
        self._whole_texts = tokenizer.whole_texts
        style = tokenizer.style
        self._leading_space = LeadingSpace.KEEP if continues_text else style.leading_space
        self._bytes: _ByteRun | _Utf8Stream = _Utf8Stream() if style.is_byte_level else _ByteRun()
        self._is_inside_character = False

    def push(self, token_ids: Iterable[int]) -> str:
        """The text that these tokens complete."""
        pieces = []
        texts = self._whole_texts
        for token_id in token_ids:
            # An id outside the tokenizer (a padded embedding row) has no text.
            text = texts[token_id] if token_id < len(texts) else ""
            if not text and self._shown_specials:
                text = self._shown_specials.get(token_id, text)
            if text is None or (self._is_inside_character and text):
                text = self._push_partial(token_id, text)
            if text and self._leading_space is not LeadingSpace.KEEP:
                text = self._without_leading_space(text)
            pieces.append(text)
        return pieces[0] if len(pieces) == 1 else "".join(pieces)

    def flush(self) -> str:
        """What is left at the end: replacement characters for an incomplete one, mostly ""."""
        if not self._is_inside_character:
            return ""
        self._is_inside_character = False
        text = self._bytes.flush()
        if self._leading_space is not LeadingSpace.KEEP:
            text = self._without_leading_space(text)
        return text

    def _push_partial(self, token_id: int, whole_text: str | None) -> str:
        text = self._bytes.push(self._tokenizer.token_bytes(token_id), is_whole=bool(whole_text))
        self._is_inside_character = self._bytes.is_inside_character
        return text

    def _without_leading_space(self, text: str) -> str:
        strip_all = self._leading_space is LeadingSpace.STRIP_FIRST_TOKEN
        self._leading_space = LeadingSpace.KEEP
        return text.replace(" ", "") if strip_all else text.removeprefix(" ")


class _Utf8Stream:
    """Byte-level vocabularies: the tokens' bytes are one stream of UTF-8."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_inside_character(self) -> bool:
        return bool(self._decoder.getstate()[0])

    def push(self, data: bytes, *, is_whole: bool) -> str:
        return self._decoder.decode(data)

    def flush(self) -> str:
        return self._decoder.decode(b"", final=True)


class _ByteRun:
    """Sentencepiece: only neighbouring byte tokens form characters together."""

    def __init__(self) -> None:
        self._pending = b""

    @property
    def is_inside_character(self) -> bool:
        return bool(self._pending)

    def push(self, data: bytes, *, is_whole: bool) -> str:
        if is_whole:
            return self.flush() + data.decode()
        self._pending += data
        text = ""
        while self._pending:
            try:
                text += self._pending.decode()
                self._pending = b""
            except UnicodeDecodeError as error:
                if error.reason == "unexpected end of data" and error.start == 0:
                    break
                # One replacement character for each byte that fits nowhere, as the
                # whole-sequence decoder does it.
                kept = error.start
                text += self._pending[:kept].decode()
                if error.reason != "unexpected end of data":
                    text += REPLACEMENT
                    kept += 1
                self._pending = self._pending[kept:]
        return text

    def flush(self) -> str:
        text = REPLACEMENT * len(self._pending)
        self._pending = b""
        return text


class StopStringChecker:
    """Passes a text on up to the stop string that is completed first.

    Of two that end at the same character the longer one counts. The text held back is the longest
    end that could be the beginning of a stop string. Costs a few operations per character whatever
    the length of the stop strings (Knuth-Morris-Pratt, one automaton each).
    """

    def __init__(self, stop_strings: Sequence[str]) -> None:
        assert all(stop_strings), "an empty stop string would stop everything"
        self._patterns = tuple(stop_strings)
        self._fallbacks = tuple(_fallback_table(pattern) for pattern in stop_strings)
        self._first_chars = frozenset(pattern[0] for pattern in stop_strings)
        self._matched = [0] * len(self._patterns)  # characters of each pattern seen last
        self._held = ""
        self.stopped_by: str | None = None  # the stop string that was completed

    @property
    def is_stopped(self) -> bool:
        return self.stopped_by is not None

    def push(self, text: str) -> str:
        """The text that may be shown now. After a stop nothing may be pushed any more."""
        assert not self.is_stopped
        if not self._held and self._first_chars.isdisjoint(text):
            return text
        seen = self._held + text
        for position, char in enumerate(text, start=len(self._held) + 1):
            stop_length = self._advance(char)
            if stop_length:
                self._held = ""
                self.stopped_by = seen[position - stop_length : position]
                return seen[: position - stop_length]
        num_shown = len(seen) - max(self._matched, default=0)
        self._held = seen[num_shown:]
        return seen[:num_shown]

    def flush(self) -> str:
        """The text still held back, for the end of the sequence."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._patterns)
        return held

    def _advance(self, char: str) -> int:
        """The length of the longest stop string that ends with this character, 0 for none."""
        longest = 0
        for which, pattern in enumerate(self._patterns):
            matched = self._matched[which]
            while matched and pattern[matched] != char:
                matched = self._fallbacks[which][matched - 1]
            if pattern[matched] == char:
                matched += 1
            self._matched[which] = matched
            if matched == len(pattern):
                longest = max(longest, matched)
        return longest


def _fallback_table(pattern: str) -> tuple[int, ...]:
    """For each prefix, the length of its longest proper prefix that is also its suffix."""
    table = [0] * len(pattern)
    length = 0
    for position in range(1, len(pattern)):
        while length and pattern[position] != pattern[length]:
            length = table[length - 1]
        if pattern[position] == pattern[length]:
            length += 1
        table[position] = length
    return tuple(table)
