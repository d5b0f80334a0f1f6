"""Text that arrives in pieces, read as if it were all there.

A reader is a generator that yields whenever it needs more text than there is. What it reads never
depends on where the pieces were cut.
"""

import re
from collections.abc import Callable, Generator, Sequence
from typing import TypeVar

T = TypeVar("T")
Reading = Generator[None, None, T]

SPACE = " \t\r\n"
MAX_HELD_SEPARATORS = 64
_JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_OUTSIDE_STRING = re.compile(r'["{}\[\]]')
_INSIDE_STRING = re.compile(r'["\\]')


class TextFeed:
    """What has arrived and was not taken yet."""

    def __init__(self) -> None:
        self.rest = ""
        self.is_ended = False  # nothing more will arrive
        self._taken: list[str] | None = None  # None: not recording

    def take(self, length: int) -> str:
        """Remove the first characters of `rest`."""
        text, self.rest = self.rest[:length], self.rest[length:]
        if self._taken is not None:
            self._taken.append(text)
        return text

    def start_recording(self) -> None:
        self._taken = []

    def stop_recording(self) -> str:
        """What was taken since the recording started."""
        taken, self._taken = self._taken, None
        return "".join(taken or ())

    def put_back(self, text: str) -> None:
        self.rest = text + self.rest

    def peek(self) -> Reading[str]:
        """The next character, "" at the end."""
        while not self.rest and not self.is_ended:
            yield
        return self.rest[:1]

    def take_space(self) -> Reading[str]:
        """All white space that comes next."""
        parts = []
        while (yield from self.peek()) and self.rest[0] in SPACE:
            parts.append(self.take(len(self.rest) - len(self.rest.lstrip(SPACE))))
        return "".join(parts)

    def try_literal(self, literal: str) -> Reading[bool]:
        """Take `literal` if it comes next."""
        while len(self.rest) < len(literal) and not self.is_ended:
            if not literal.startswith(self.rest):
                return False
            yield
        if not self.rest.startswith(literal):
            return False
        self.take(len(literal))
        return True

    def try_match(self, pattern: re.Pattern[str], *, max_length: int) -> Reading[str | None]:
        """Take a match that ends before something else, or the end; None if nothing matches.

        A match that could be longer is waited for; one longer than `max_length` is none.
        """
        while True:
            match = pattern.match(self.rest)
            length = match.end() if match else 0
            is_open = length == len(self.rest) and length <= max_length
            if not is_open or self.is_ended:
                return self.take(length) if 0 < length <= max_length else None
            yield

    def try_json_string(self, *, max_length: int) -> Reading[str | None]:
        """Take a JSON string with its quotes, of at most `max_length` characters."""
        while (yield from self.peek()) == '"':
            match = _JSON_STRING.match(self.rest)
            if match is not None:
                return self.take(match.end()) if match.end() <= max_length else None
            if self.is_ended or len(self.rest) > max_length:
                return None
            yield
        return None

    def take_container(self, emit: Callable[[str], None], *, depth: int = 0) -> Reading[None]:
        """Take a JSON object or array up to its end, handing its text on as it comes.

        `depth`: how many brackets are open already; 0 means that one comes next.
        """
        end = _ContainerEnd(depth)
        while (yield from self.peek()):
            length = end.find(self.rest)
            emit(self.take(len(self.rest) if length is None else length))
            if length is not None:
                return


class _ContainerEnd:
    """Finds where a JSON container ends. Brackets in strings do not count."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._is_in_string = False
        self._is_escaped = False

    def find(self, text: str) -> int | None:
        """The end's position in the next piece of text."""
        at = 1 if self._is_escaped else 0
        self._is_escaped = False
        while match := (_INSIDE_STRING if self._is_in_string else _OUTSIDE_STRING).search(text, at):
            char, at = match[0], match.end()
            if char == '"':
                self._is_in_string = not self._is_in_string
            elif char == "\\":
                self._is_escaped = at == len(text)
                at += 1
            else:
                self._depth += 1 if char in "{[" else -1
                if self._depth <= 0:
                    return at
        return None


def read_until(
    feed: TextFeed, emit: Callable[[str], None], markers: Sequence[str], *, separators: str
) -> Reading[tuple[str, str]]:
    """Hand text on up to the first marker.

    Returns:
        The marker, which is still in the feed ("": the text ended), and the separators right before
        it or the end, which were taken and not handed on (at most `MAX_HELD_SEPARATORS`).
    """
    while True:
        position, marker = _first(feed.rest, markers)
        if marker is None:
            position = min(_partial_position(feed.rest, item) for item in markers)
        before = feed.rest[:position]
        num_separators = len(before) - len(before.rstrip(separators))
        shown = position - min(num_separators, MAX_HELD_SEPARATORS)
        if shown:
            emit(feed.take(shown))
        if marker is not None:
            return marker, feed.take(position - shown)
        if feed.is_ended:
            if position < shown + len(feed.rest):  # a beginning of a marker that never came
                emit(feed.take(len(feed.rest)))
            return "", feed.take(len(feed.rest))
        yield


def _first(text: str, markers: Sequence[str]) -> tuple[int, str | None]:
    found = [(at, marker) for marker in markers if (at := text.find(marker)) >= 0]
    return min(found) if found else (len(text), None)


def _partial_position(text: str, marker: str) -> int:
    """Where an end of `text` that is a beginning of `marker` starts; the length without one."""
    at = text.find(marker[0], max(0, len(text) - len(marker) + 1))
    while at >= 0 and not marker.startswith(text[at:]):
        at = text.find(marker[0], at + 1)
    return len(text) if at < 0 else at
