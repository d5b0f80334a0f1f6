"""Server-sent events, read from chunks of bytes as they come, within bounds."""

import re

MAX_EVENT_BYTES = 4 * 2**20
_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventTooLargeError(ValueError):
    """An event, or a line of it, has more than `MAX_EVENT_BYTES`."""


class EventReader:
    """The `data` of each event; comments and other fields are skipped (HTML, section 9.2.6)."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._line = bytearray()  # whose end has not come
        self._is_held = False  # it ends with a \r that may be half of a \r\n
        self._data: list[bytes] = []  # of the event whose end has not come
        self._num_bytes = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The events that end in this chunk.

        Raises:
            EventTooLargeError: one grows beyond the limit.
        """
        self._line += chunk
        if not self._is_held and b"\n" not in chunk and b"\r" not in chunk:
            self._check(len(self._line))
            return []
        self._is_held = self._line.endswith(b"\r")
        *lines, rest = _LINE_END.split(self._line[:-1] if self._is_held else self._line)
        self._line = bytearray(rest + b"\r" if self._is_held else rest)
        events = []
        for line in lines:
            if line:
                self._add(bytes(line))
            elif self._data:
                events.append(b"\n".join(self._data))
                self._data, self._num_bytes = [], 0
        self._check(len(self._line))
        return events

    def _add(self, line: bytes) -> None:
        self._check(len(line))
        name, _, value = line.partition(b":")
        if name == b"data":
            self._num_bytes += len(value)
            self._data.append(value.removeprefix(b" "))

    def _check(self, num_more: int) -> None:
        if self._num_bytes + num_more > self._max_event_bytes:
            raise EventTooLargeError(f"an event has more than {self._max_event_bytes} bytes")
