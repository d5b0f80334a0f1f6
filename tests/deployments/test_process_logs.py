import logging
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from cluster.audit import AUDIT_LOGGER, Act, audited
from cluster.config import LogSettings
from cluster.log_context import tagged
from deployments.process_logs import write_audit_log, write_to_stderr

NAMES = ("cluster", "models", "deployments", "uvicorn", AUDIT_LOGGER)


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(one, one.level, one.propagate, list(one.handlers)) for one in loggers]
    yield
    for one, level, propagate, handlers in before:
        one.setLevel(level)
        one.propagate, one.handlers = propagate, handlers


def test_lines_of_a_process_are_entries(capsys: pytest.CaptureFixture[str]) -> None:
    write_to_stderr(LogSettings(level="INFO", format="json"), component="rank 1")
    logging.getLogger("models.parallel").info("ready")
    logging.getLogger("models.parallel").debug("unheard")
    (line,) = capsys.readouterr().err.splitlines()
    entry = orjson.loads(line)
    assert (entry["component"], entry["message"]) == ("rank 1", "ready")


def test_or_text(capsys: pytest.CaptureFixture[str]) -> None:
    write_to_stderr(LogSettings(level="INFO", format="text"), component="rank 1")
    logging.getLogger("models.parallel").info("ready")
    assert capsys.readouterr().err.endswith("Z INFO models.parallel: ready\n")


def test_acts_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    write_audit_log(tmp_path / "logs")
    with (
        tagged(request_id="r1", tenant="acme", key_id="k1"),
        audited(Act.KEY_REVOKED, "key k2 of tenant acme"),
    ):
        pass
    (line,) = (tmp_path / "logs" / "audit.log").read_text().splitlines()
    entry = orjson.loads(line)
    del entry["time"]
    assert entry == {
        "level": "INFO",
        "logger": "audit",
        "message": "key.revoked: key k2 of tenant acme: ok",
        "request_id": "r1",
        "tenant": "acme",
        "key_id": "k1",
        "act": "key.revoked",
        "target": "key k2 of tenant acme",
        "result": "ok",
    }
