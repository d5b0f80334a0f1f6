"""From the text of an output, as it grows, to the parts of a message."""

from collections.abc import Set
from dataclasses import dataclass

from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.message_parts import MessageParts, PartsWriter
from models.tool_parsing.text_feed import Reading, TextFeed
from models.tool_parsing.thinking import Thinking


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRules:
    """Which calls an output may have."""

    call_format: CallFormat
    names: Set[str]  # the functions; a call of another one is content
    max_calls: int | None = None  # None: any number
    has_content: bool = True  # else text beside calls is the beginning of one that was cut off


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputRules:
    """What the outputs of a request consist of beside content."""

    thinking: Thinking | None = None
    calls: CallRules | None = None


class OutputParser:
    """Reads one output. The parts together do not depend on how the text was split."""

    def __init__(self, rules: OutputRules) -> None:
        self._feed = TextFeed()
        calls = rules.calls
        self._parts = PartsWriter(
            _no_call_id if calls is None else calls.call_format.new_call_id,
            max_calls=None if calls is None else calls.max_calls,
        )
        self._has_content = calls is None or calls.has_content
        self._reading = self._read(rules)
        self._is_at_end = False

    @property
    def is_full(self) -> bool:
        """Whether the message has all the calls that it may have: the output can end here."""
        return self._parts.is_full and self._is_at_end

    def push(self, text: str) -> MessageParts:
        """The parts that this text completes."""
        self._feed.rest += text
        return self._advance()

    def finish(self) -> MessageParts:
        """The parts that were held back until the end of the text."""
        self._feed.is_ended = True
        return self._advance()

    def _advance(self) -> MessageParts:
        if not self._is_at_end:
            try:
                next(self._reading)
            except StopIteration:
                self._is_at_end = True
        parts = self._parts.drain()
        return parts if self._has_content else parts._replace(content="")

    def _read(self, rules: OutputRules) -> Reading[None]:
        feed, parts = self._feed, self._parts
        if rules.thinking is not None:
            yield from rules.thinking.read(feed, parts)
        if rules.calls is not None:
            yield from rules.calls.call_format.read(feed, parts, rules.calls.names)
            return
        while (yield from feed.peek()):
            parts.content(feed.take(len(feed.rest)))


def _no_call_id() -> str:
    raise AssertionError("an output without calls needs no ids")
