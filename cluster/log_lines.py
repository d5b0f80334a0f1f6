"""How a line of a log is written: one JSON object, or text; and JSON read back as text.

A line has a time (ISO 8601, UTC), level, logger and message, the component and replica that wrote
it, what `log_context` knows, and the fields of its event (`fields_of`). Secrets are masked.
"""

import logging
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from cluster.log_context import log_tags
from cluster.log_redaction import redact

Entry = dict[str, Any]

_FIELDS = "fields"  # an attribute of records
_ORIGIN = ("component", "replica")  # whose log it is: a file's name says it too
_HEAD = ("time", "level", "logger", "message")
_EXCEPTION = "exception"
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


def fields_of(**fields: object) -> dict[str, object]:
    """For `extra=` of a logging call: values of the event, by name. None is left out."""
    return {_FIELDS: {name: value for name, value in fields.items() if value is not None}}


class LineFormatter(logging.Formatter):
    """Writes records as entries; `json` one per line, else as `entry_text`."""

    def __init__(self, *, json: bool, component: str = "", replica: str = "") -> None:
        super().__init__()
        self._json = json
        self._origin = {
            name: value for name, value in zip(_ORIGIN, (component, replica), strict=True) if value
        }

    def format(self, record: logging.LogRecord) -> str:
        entry = self._entry(record)
        if not self._json:
            return redact(entry_text(entry))
        return redact(orjson.dumps(entry, default=str, option=orjson.OPT_NON_STR_KEYS).decode())

    def _entry(self, record: logging.LogRecord) -> Entry:
        entry: Entry = {
            "time": _iso_time(record.created),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._origin,
            **log_tags(),
            **getattr(record, _FIELDS, {}),
        }
        if record.exc_info:
            entry[_EXCEPTION] = self.formatException(record.exc_info)
        return entry


def entry_text(entry: Mapping[str, Any]) -> str:
    """For people: time, level, logger, message, the rest as name=value; a traceback below."""
    rest = [
        f"{name}={value}"
        for name, value in entry.items()
        if name not in (*_HEAD, *_ORIGIN, _EXCEPTION)
    ]
    head = f"{entry['time']} {entry['level']} {entry['logger']}: {entry['message']}"
    text = _visible(" ".join([head, *rest]))
    if _EXCEPTION not in entry:
        return text
    return "\n".join([text, *map(_visible, str(entry[_EXCEPTION]).split("\n"))])


def readable_line(line: str) -> str:
    """A line of a log for people: an entry as text, any other line as it is."""
    if not line.startswith("{"):
        return line
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    is_entry = all(name in entry for name in _HEAD)
    return entry_text(entry) if is_entry else line


def _visible(text: str) -> str:
    """On one line, and without effect on a terminal: what a client sent may be part of it."""
    return _CONTROL.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def _iso_time(unix_s: float) -> str:
    at = datetime.fromtimestamp(unix_s, tz=UTC)
    return at.isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"
