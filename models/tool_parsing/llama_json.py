"""Llama 3.x, and the demo model: calls are JSON objects in the text.

    {"name": "get_weather", "parameters": {"city": "Oslo"}}; {"name": ...}

Several are separated by "; " or line ends. Llama may write `<|python_tag|>` before them. An object
that names none of the request's functions is content.
"""

import uuid
from collections.abc import Sequence, Set

from models.tokenizer import Tokenizer
from models.tool_parsing import lark
from models.tool_parsing.call_format import GuidedFunction
from models.tool_parsing.call_object import CallObject
from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import SPACE, Reading, TextFeed, read_until

PYTHON_TAG = "<|python_tag|>"
_SEPARATORS = f"{SPACE};"


class LlamaJSON:
    """See `CallFormat`."""

    name = "llama3_json"
    marker_tokens = (PYTHON_TAG,)

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def new_call_id(self) -> str:
        return f"call_{uuid.uuid4().hex}"

    def read(self, feed: TextFeed, parts: PartsWriter, names: Set[str]) -> Reading[None]:
        while not parts.is_full:
            marker, before = yield from read_until(
                feed, parts.content, (PYTHON_TAG, "{"), separators=_SEPARATORS
            )
            if marker == PYTHON_TAG:
                before += feed.take(len(PYTHON_TAG)) + (yield from feed.take_space())
                if (yield from feed.peek()) != "{":
                    parts.content(before)
                    continue
            elif not marker:
                if not parts.num_calls:
                    parts.content(before)
                return
            if not (yield from CallObject(feed, parts, names).try_read()):
                parts.content(before + feed.stop_recording())

    def forced_rules(self, functions: Sequence[GuidedFunction], *, is_one: bool) -> str:
        calls = "calls: object" if is_one else 'calls: object ("; " object)*'
        return lark.lines(calls, *lark.strict_object_rules(functions, "parameters"))

    def free_rules(
        self, functions: Sequence[GuidedFunction], *, is_one: bool, excluded: Sequence[str] = ()
    ) -> str:
        tag = ""
        if lark.is_special(self._tokenizer, PYTHON_TAG):
            tag = f" | TEXT? {lark.marker(self._tokenizer, PYTHON_TAG)}"
        message = "message: part* TEXT?" if not is_one else "message: TEXT? | call"
        if is_one and tag:
            message = f"message: ({tag.removeprefix(' | ')})* (TEXT | call)?"
        rules = [message, f"part: call{tag}", lark.one_of("call", functions)]
        for index, function in enumerate(functions):
            start = lark.call_object_start(lark.name_pattern([function]))
            rules.append(f"head_{index}[lazy]: {lark.text(lark.ANYTHING + start, *excluded)}")
            rules.append(f'call_{index}: head_{index} SPACE? arguments_{index} SPACE? "}}"')
        start = lark.call_object_start(lark.name_pattern(functions))
        start_inside = f"{lark.ANYTHING}{start}{lark.ANYTHING}"
        rules.append(f"TEXT: {lark.text(lark.SOMETHING, start_inside, *excluded)}")
        return lark.lines(*rules, *lark.argument_rules(functions), lark.SPACE_RULE)
