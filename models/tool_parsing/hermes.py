"""Hermes and Qwen: each call is a JSON object between tags.

<tool_call>
{"name": "get_weather", "arguments": {"city": "Oslo"}}
</tool_call>
"""

import uuid
from collections.abc import Sequence, Set

from models.tokenizer import Tokenizer
from models.tool_parsing import lark
from models.tool_parsing.call_format import GuidedFunction
from models.tool_parsing.call_object import CallObject
from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import SPACE, Reading, TextFeed, read_until

OPENING, CLOSING = "<tool_call>", "</tool_call>"


class Hermes:
    """See `CallFormat`."""

    name = "hermes"
    marker_tokens = (OPENING, CLOSING)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def new_call_id(self) -> str:
        return f"call_{uuid.uuid4().hex}"

    def read(self, feed: TextFeed, parts: PartsWriter, names: Set[str]) -> Reading[None]:
        while not parts.is_full:
            marker, before = yield from read_until(
                feed, parts.content, (OPENING,), separators=SPACE
            )
            if not marker:
                if not parts.num_calls:
                    parts.content(before)
                return
            before += feed.take(len(OPENING)) + (yield from feed.take_space())
            yield from self._read_tagged(feed, parts, names, before)

    def _read_tagged(
        self, feed: TextFeed, parts: PartsWriter, names: Set[str], before: str
    ) -> Reading[None]:
        """What follows an opening tag: a call, rarely several, and the closing tag."""
        num_calls_before = parts.num_calls
        while (yield from feed.peek()) == "{":
            if not (yield from CallObject(feed, parts, names).try_read()):
                parts.content(before + feed.stop_recording())
                return
            if parts.is_full:
                return
            before = yield from feed.take_space()
        if parts.num_calls == num_calls_before:
            parts.content(before)
        else:
            yield from feed.try_literal(CLOSING)  # a model may forget it

    def forced_rules(self, functions: Sequence[GuidedFunction], *, is_one: bool) -> str:
        opening, closing = (lark.marker(self._tokenizer, tag) for tag in (OPENING, CLOSING))
        return lark.lines(
            "calls: call" if is_one else r'calls: call ("\n" call)*',
            rf'call: {opening} "\n" object "\n" {closing}',
            *lark.strict_object_rules(functions, "arguments"),
        )

    def free_rules(
        self, functions: Sequence[GuidedFunction], *, is_one: bool, excluded: Sequence[str] = ()
    ) -> str:
        opening, closing = (lark.marker(self._tokenizer, tag) for tag in (OPENING, CLOSING))
        if lark.is_special(self._tokenizer, OPENING):
            head = f"head: TEXT? {opening}"
        else:
            head = f"head[suffix={opening}]: {lark.text(lark.ANYTHING, *excluded)}"
        message = (
            f"message: TEXT? | head SPACE? object SPACE? {closing}"
            if is_one
            else f"message: (head SPACE? (object SPACE?)+ {closing})* TEXT?"
        )
        opening_inside = f"{lark.ANYTHING}{OPENING}{lark.ANYTHING}"
        return lark.lines(
            message,
            head,
            f"TEXT: {lark.text(lark.SOMETHING, opening_inside, *excluded)}",
            *lark.loose_object_rules(functions),
        )
