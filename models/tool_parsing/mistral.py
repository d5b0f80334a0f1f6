"""Mistral: calls after the token `[TOOL_CALLS]`, in one of two spellings.

    [TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}}, {...}]
    [TOOL_CALLS]get_weather[ARGS]{"city": "Oslo"}[TOOL_CALLS]...

Both are read; the checkpoint's template and vocabulary say which of them a grammar should write.
"""

import re
import secrets
import string
from collections.abc import Sequence, Set

from models.tokenizer import Tokenizer
from models.tool_parsing import lark
from models.tool_parsing.call_format import GuidedFunction
from models.tool_parsing.call_object import CallObject
from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import SPACE, Reading, TextFeed, read_until

TOOL_CALLS, ARGUMENTS, CALL_ID = "[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"
_ID_CHARS = string.ascii_letters + string.digits
_ID_LENGTH = 9  # Mistral's templates refuse any other
_NAME = re.compile(r"[a-zA-Z0-9_.-]+")
_ID = re.compile(r"[a-zA-Z0-9]+")
_MAX_NAME_CHARS = 64


class Mistral:
    """See `CallFormat`."""

    name = "mistral"
    marker_tokens = (TOOL_CALLS, ARGUMENTS, CALL_ID)

    def __init__(self, tokenizer: Tokenizer, *, has_named_calls: bool) -> None:
        """`has_named_calls`: the newer of the two spellings."""
        self._tokenizer = tokenizer
        self._has_named_calls = has_named_calls

    def new_call_id(self) -> str:
        return "".join(secrets.choice(_ID_CHARS) for _ in range(_ID_LENGTH))

    def read(self, feed: TextFeed, parts: PartsWriter, names: Set[str]) -> Reading[None]:
        while not parts.is_full:
            marker, before = yield from read_until(
                feed, parts.content, (TOOL_CALLS,), separators=SPACE
            )
            if not marker:
                if not parts.num_calls:
                    parts.content(before)
                return
            before += feed.take(len(TOOL_CALLS)) + (yield from feed.take_space())
            first = yield from feed.peek()
            if first == "[":
                yield from self._read_array(feed, parts, names, before)
            elif first == "{":
                if not (yield from CallObject(feed, parts, names).try_read()):
                    parts.content(before + feed.stop_recording())
            else:
                yield from self._read_named(feed, parts, names, before)

    def _read_array(
        self, feed: TextFeed, parts: PartsWriter, names: Set[str], before: str
    ) -> Reading[None]:
        before += feed.take(1)
        while True:
            before += yield from feed.take_space()
            if (yield from feed.peek()) != "{":
                parts.content(before)
                return
            if not (yield from CallObject(feed, parts, names).try_read()):
                parts.content(before + feed.stop_recording())
                return
            if parts.is_full:
                return
            yield from feed.take_space()
            if not (yield from feed.try_literal(",")):
                yield from feed.try_literal("]")
                return
            before = ","

    def _read_named(
        self, feed: TextFeed, parts: PartsWriter, names: Set[str], before: str
    ) -> Reading[None]:
        feed.start_recording()
        name = yield from feed.try_match(_NAME, max_length=_MAX_NAME_CHARS)
        if name is not None and name in names:
            if (yield from feed.try_literal(CALL_ID)):
                yield from feed.try_match(_ID, max_length=_MAX_NAME_CHARS)
            yield from feed.try_literal(ARGUMENTS)
            yield from feed.take_space()
            if (yield from feed.peek()) == "{":
                feed.stop_recording()
                parts.begin_call(name)
                yield from feed.take_container(parts.arguments)
                return
        parts.content(before + feed.stop_recording())

    def forced_rules(self, functions: Sequence[GuidedFunction], *, is_one: bool) -> str:
        start = lark.marker(self._tokenizer, TOOL_CALLS)
        if self._has_named_calls:
            calls = "calls: call" if is_one else "calls: call+"
            return lark.lines(calls, *self._named_rules(functions))
        more = "" if is_one else ' (", " object)*'
        return lark.lines(
            f'calls: {start} "[" object{more} "]"',
            *lark.strict_object_rules(functions, "arguments"),
        )

    def free_rules(
        self, functions: Sequence[GuidedFunction], *, is_one: bool, excluded: Sequence[str] = ()
    ) -> str:
        start = lark.marker(self._tokenizer, TOOL_CALLS)
        if lark.is_special(self._tokenizer, TOOL_CALLS):
            head = f"head: TEXT? {start}"
            text = f"TEXT: {lark.text(lark.SOMETHING, *excluded)}"
        else:
            start_inside = rf"{lark.ANYTHING}\[TOOL_CALLS\]{lark.ANYTHING}"
            head = f"head[suffix={start}]: {lark.text(lark.ANYTHING, *excluded)}"
            text = f"TEXT: {lark.text(lark.SOMETHING, start_inside, *excluded)}"
        if self._has_named_calls:
            body, rules = "named SPACE?", [*self._named_rules(functions), lark.SPACE_RULE]
        else:
            more = "" if is_one else ' ("," SPACE? object SPACE?)*'
            body = f'SPACE? "[" SPACE? object SPACE?{more} "]" SPACE?'
            rules = lark.loose_object_rules(functions)
        message = f"TEXT? | head {body}" if is_one else f"(head {body})* TEXT?"
        return lark.lines(f"message: {message}", head, text, *rules)

    def _named_rules(self, functions: Sequence[GuidedFunction]) -> list[str]:
        """`call`: with its marker; `named`: what follows the marker."""
        start = lark.marker(self._tokenizer, TOOL_CALLS)
        arguments = lark.marker(self._tokenizer, ARGUMENTS)
        rules = [f"call: {start} named", lark.one_of("named", functions)]
        for index, function in enumerate(functions):
            name = lark.literal(function.name)
            rules.append(f"named_{index}: {name} {arguments} arguments_{index}")
        return [*rules, *lark.argument_rules(functions)]
