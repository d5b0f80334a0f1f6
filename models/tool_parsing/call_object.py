"""One function call written as a JSON object: {"name": ..., "parameters" or "arguments": {...}}.

Most formats write calls like this. `type` and `id`, which some models add, are passed over. The
arguments are handed on as they come once the name is known; where they stand before the name, or
are the JSON text of an object in a string, at the end.
"""

import json
from collections.abc import Set

from models.tool_parsing.message_parts import PartsWriter
from models.tool_parsing.text_feed import Reading, TextFeed

_NAME_KEYS = ("name",)
_ARGUMENT_KEYS = ("parameters", "arguments")
_OTHER_KEYS = ("type", "id")
_MAX_KEY_CHARS = 32
_MAX_STRING_CHARS = 512  # of a name, type or id with its escapes
_MAX_ENCODED_ARGUMENTS = 1 << 20


class CallObject:
    """Reads one object; `try_read` once."""

    def __init__(self, feed: TextFeed, parts: PartsWriter, names: Set[str]) -> None:
        self._feed = feed
        self._parts = parts
        self._names = names
        self._name: str | None = None
        self._arguments: str | None = None  # that stand before the name

    def try_read(self) -> Reading[bool]:
        """Read the object whose "{" comes next, up to its end or the end of the text.

        False: it is not a call of one of the functions; the feed's recording has what was taken.
        """
        feed = self._feed
        feed.start_recording()
        feed.take(1)
        while True:
            key = yield from self._key()
            if key in _ARGUMENT_KEYS and self._name is not None:
                return (yield from self._arguments_after_name())
            if key is None or not (yield from self._try_member(key)):
                return False
            yield from feed.take_space()
            if (yield from feed.try_literal(",")):
                continue
            if self._name is None or not (yield from feed.try_literal("}")):
                return False
            self._write_call(self._name, self._arguments or "{}")
            return True

    def _key(self) -> Reading[str | None]:
        yield from self._feed.take_space()
        key = yield from self._string(_MAX_KEY_CHARS)
        yield from self._feed.take_space()
        if key is None or not (yield from self._feed.try_literal(":")):
            return None
        yield from self._feed.take_space()
        return key

    def _string(self, max_length: int) -> Reading[str | None]:
        text = yield from self._feed.try_json_string(max_length=max_length)
        value = None if text is None else _decoded(text)
        return value if isinstance(value, str) else None

    def _try_member(self, key: str) -> Reading[bool]:
        """A member other than arguments after the name."""
        if key in _ARGUMENT_KEYS:
            self._arguments = yield from self._whole_arguments()
            return self._arguments is not None
        if key not in _NAME_KEYS and key not in _OTHER_KEYS:
            return False
        value = yield from self._string(_MAX_STRING_CHARS)
        if key in _NAME_KEYS:
            self._name = value
            return value in self._names
        return value is not None

    def _whole_arguments(self) -> Reading[str | None]:
        """The JSON text of an object, or None where something else stands."""
        feed = self._feed
        if (yield from feed.peek()) == "{":
            parts: list[str] = []
            yield from feed.take_container(parts.append)
            text = "".join(parts)
            return text if isinstance(_decoded(text), dict) else None
        encoded = yield from feed.try_json_string(max_length=_MAX_ENCODED_ARGUMENTS)
        inner = None if encoded is None else _decoded(encoded)
        if isinstance(inner, str) and isinstance(_decoded(inner), dict):
            return inner
        return "{}" if (yield from feed.try_literal("null")) else None

    def _arguments_after_name(self) -> Reading[bool]:
        assert self._name is not None
        feed = self._feed
        if (yield from feed.peek()) == "{":
            feed.stop_recording()
            self._parts.begin_call(self._name)
            yield from feed.take_container(self._parts.arguments)
        else:
            arguments = yield from self._whole_arguments()
            if arguments is None:
                return False
            self._write_call(self._name, arguments)
        if not self._parts.is_full:
            yield from self._pass_over_rest()
        return True

    def _pass_over_rest(self) -> Reading[None]:
        """The end of the object, further members included. What is no such end stays."""
        feed = self._feed
        yield from feed.take_space()
        if (yield from feed.peek()) == ",":
            yield from feed.take_container(_nowhere, depth=1)
        else:
            yield from feed.try_literal("}")

    def _write_call(self, name: str, arguments: str) -> None:
        self._feed.stop_recording()
        self._parts.begin_call(name)
        self._parts.arguments(arguments)


def _nowhere(_: str) -> None:
    pass


def _decoded(text: str) -> object:
    """None for what is not JSON."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
