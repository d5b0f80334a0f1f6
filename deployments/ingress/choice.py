"""One choice of an answer: its tokens become text, up to its end.

Half characters and possible beginnings of stop strings are held back; the logprobs of a token
leave together with the first of its text.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.errors import InternalError, ServiceUnavailableError
from cluster.types import FinishReason, TokenDelta, TokenLogprobs
from models.detokenizer import Detokenizer, StopStringChecker
from models.tokenizer import Tokenizer
from models.tool_parsing.message_parts import CallDelta, MessageParts
from models.tool_parsing.output_parser import OutputParser, OutputRules


class TokenEntry(NamedTuple):
    """A token with its logprobs and the place of its text in the choice's text."""

    token_id: int
    logprobs: TokenLogprobs
    text_offset: int


class Piece(NamedTuple):
    """What a delta added to a choice. All may be empty, and the reason None: all held back.

    A piece's parts are to be read in the order of reasoning, text, calls.
    """

    choice_index: int
    text: str
    entries: Sequence[TokenEntry]
    finish_reason: FinishReason | None
    reasoning: str = ""
    calls: Sequence[CallDelta] = ()
    stop_string: str | None = None  # the one that ended the choice, if one did


@dataclass(frozen=True, slots=True, kw_only=True)
class TextRules:
    """How the tokens of all choices of a request become text."""

    stop_strings: tuple[str, ...] = ()
    min_tokens: int = 0  # stop strings count only in text after this many tokens
    has_logprobs: bool = False
    continues_text: bool = False  # the text goes on after the prompt's, space included
    output: OutputRules | None = None  # None: all text is content
    shown_special_ids: frozenset[int] = frozenset()  # what `output` wants to see as text


class Choice:
    """Turns the deltas of one sequence into pieces."""

    def __init__(self, index: int, tokenizer: Tokenizer, rules: TextRules) -> None:
        self.index = index
        self.num_tokens = 0  # generated, stop token and stop string included
        self.num_reasoning_tokens = 0  # of those, the ones before the answer of a model that thinks
        self._has_answered = False
        self.cumulative_logprob = 0.0  # of those tokens, when the engine reports logprobs
        self.finish_reason: FinishReason | None = None
        self.last_token_s: float | None = None  # for whoever measures
        self._rules = rules
        self._detokenizer = Detokenizer(
            tokenizer,
            continues_text=rules.continues_text,
            shown_special_ids=rules.shown_special_ids,
        )
        self._parser = OutputParser(rules.output) if rules.output is not None else None
        self._checker = StopStringChecker(rules.stop_strings) if rules.stop_strings else None
        self._entries: deque[TokenEntry] = deque()
        self._num_decoded_chars = 0
        self._num_shown_chars = 0

    def push(self, delta: TokenDelta) -> Piece:
        """Take the next tokens.

        Raises:
            ServingError: the engine gave the sequence up.
        """
        assert self.finish_reason is None, "a finished choice takes no more tokens"
        _check_alive(delta)
        num_tokens_before = self.num_tokens
        token_ids: Sequence[int] = delta.token_ids
        has_stop_token = bool(token_ids) and token_ids[-1] == delta.stop_token_id
        if has_stop_token:
            token_ids = token_ids[:-1]  # counted, but neither text nor logprobs
        if self._checker is None and not self._rules.has_logprobs:
            self.num_tokens += len(token_ids)
            text = self._detokenizer.push(token_ids)
        else:
            text = self._push_one_by_one(token_ids, delta.logprobs)
        if self.finish_reason is None and delta.finish_reason is not None:
            self.num_tokens += has_stop_token
            text += self._finish(delta.finish_reason)
        if delta.logprobs is not None:
            counted = delta.logprobs[: self.num_tokens - num_tokens_before]
            self.cumulative_logprob += sum(item.logprob for item in counted)
        self._num_shown_chars += len(text)
        parts = self._parts(text)
        self._count_reasoning(parts)
        return Piece(
            self.index,
            parts.content,
            self._released_entries(),
            self.finish_reason,
            reasoning=parts.reasoning,
            calls=parts.calls,
            stop_string=None if self._checker is None else self._checker.stopped_by,
        )

    def _count_reasoning(self, parts: MessageParts) -> None:
        self._has_answered = self._has_answered or bool(parts.content or parts.calls)
        if not self._has_answered and (parts.reasoning or self.num_reasoning_tokens):
            self.num_reasoning_tokens = self.num_tokens

    def _push_one_by_one(
        self, token_ids: Sequence[int], logprobs: Sequence[TokenLogprobs] | None
    ) -> str:
        """Tokens after the one that completes a stop string are not even counted."""
        shown = []
        for position, token_id in enumerate(token_ids):
            if self._rules.has_logprobs and logprobs is not None:
                entry = TokenEntry(token_id, logprobs[position], self._num_decoded_chars)
                self._entries.append(entry)
            self.num_tokens += 1
            text = self._detokenizer.push((token_id,))
            self._num_decoded_chars += len(text)
            shown.append(self._checked(text))
            if self.finish_reason is not None:
                break
        return "".join(shown)

    def _checked(self, text: str) -> str:
        if self._checker is None or self.num_tokens <= self._rules.min_tokens:
            return text
        text = self._checker.push(text)
        if self._checker.is_stopped:
            self.finish_reason = FinishReason.STOP
        return text

    def _parts(self, text: str) -> MessageParts:
        """What the next text is. The choice may end with its last call."""
        if self._parser is None:
            return MessageParts(text)
        parts = self._parser.push(text)
        if self._parser.is_full:
            self.finish_reason = FinishReason.STOP
        if self.finish_reason is None:
            return parts
        return parts.followed_by(self._parser.finish())

    def _finish(self, reason: FinishReason) -> str:
        """The rest of the text. It may still complete a stop string."""
        self.finish_reason = reason
        rest = self._detokenizer.flush()
        self._num_decoded_chars += len(rest)
        text = self._checked(rest) if rest else ""
        if self._checker is not None and not self._checker.is_stopped:
            text += self._checker.flush()
        return text

    def _released_entries(self) -> Sequence[TokenEntry]:
        if not self._entries:
            return ()
        is_cut = self._checker is not None and self._checker.is_stopped
        if self.finish_reason is not None and not is_cut:
            released = list(self._entries)
            self._entries.clear()
            return released
        released = []
        while self._entries and self._entries[0].text_offset < self._num_shown_chars:
            released.append(self._entries.popleft())
        return released


def _check_alive(delta: TokenDelta) -> None:
    if delta.finish_reason is FinishReason.ABORT:
        raise ServiceUnavailableError("The server ended this generation.")
    if delta.finish_reason is FinishReason.ERROR:
        raise InternalError("The model failed to compute the next token of this request.")
