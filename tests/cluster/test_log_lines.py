import logging
import sys
from datetime import datetime
from typing import Any

import orjson
import pytest

from cluster.api_keys import new_key
from cluster.log_context import tagged
from cluster.log_lines import LineFormatter, fields_of, readable_line


def record(message: str, *args: object, **extra: Any) -> logging.LogRecord:
    return logging.getLogger("cluster.x").makeRecord(
        "cluster.x",
        logging.INFO,
        "x.py",
        1,
        message,
        args,
        extra.pop("exc_info", None),
        extra=extra,
    )


def entry(line: logging.LogRecord) -> dict[str, Any]:
    text = LineFormatter(json=True, component="Ingress", replica="ab12").format(line)
    assert "\n" not in text
    loaded: dict[str, Any] = orjson.loads(text)
    return loaded


def failing() -> logging.LogRecord:
    try:
        raise ValueError("it\nbroke")
    except ValueError:
        return record("bad", exc_info=sys.exc_info())


def test_a_line_says_when_who_and_what() -> None:
    with tagged(request_id="r1", tenant="acme"):
        found = entry(record("%s is %d", "x", 3, **fields_of(status=200, model=None)))
    at = datetime.fromisoformat(found.pop("time"))
    assert at.utcoffset() is not None
    assert found == {
        "level": "INFO",
        "logger": "cluster.x",
        "message": "x is 3",
        "component": "Ingress",
        "replica": "ab12",
        "request_id": "r1",
        "tenant": "acme",
        "status": 200,
    }


def test_a_traceback_is_a_field_of_the_same_line() -> None:
    found = entry(failing())
    assert found["message"] == "bad"
    assert found["exception"].startswith("Traceback")
    assert found["exception"].endswith("ValueError: it\nbroke")


@pytest.mark.parametrize("json", [True, False])
def test_secrets_are_masked_wherever_they_stand(json: bool) -> None:
    key = new_key()
    line = LineFormatter(json=json).format(record("saw %s", key, **fields_of(sent=f"Bearer {key}")))
    assert key.removeprefix("shoal-") not in line
    assert line.count("***") == 2


def test_an_entry_reads_as_the_text_format_writes_it() -> None:
    for line in (record("hello", **fields_of(status=200)), failing()):
        as_text = LineFormatter(json=False).format(line)
        assert readable_line(LineFormatter(json=True).format(line)) == as_text
        assert f" INFO cluster.x: {line.getMessage()}" in as_text


def test_what_a_client_sent_makes_no_line_and_moves_no_cursor() -> None:
    text = LineFormatter(json=False).format(record("%s", "a\n2026 INFO forged\x1b[2J"))
    assert text.endswith(r"a\n2026 INFO forged\x1b[2J")


@pytest.mark.parametrize("line", ["plain", "{not json", '{"a":1}', "", "{}"])
def test_lines_of_others_are_shown_as_they_are(line: str) -> None:
    assert readable_line(line) == line
