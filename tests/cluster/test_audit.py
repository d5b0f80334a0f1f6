import logging
from typing import Any

import pytest

from cluster.audit import AUDIT_LOGGER, Act, audited
from cluster.errors import NotFoundError


def recorded(caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    (record,) = caplog.records
    assert record.name == AUDIT_LOGGER
    fields: dict[str, Any] = record.__dict__["fields"]
    return fields


@pytest.fixture(autouse=True)
def at_info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, AUDIT_LOGGER)


def test_an_act_is_recorded_with_what_became_known(caplog: pytest.LogCaptureFixture) -> None:
    with audited(Act.KEY_CREATED, "key") as act:
        act.target = "key abc"
    assert recorded(caplog) == {"act": "key.created", "target": "key abc", "result": "ok"}


@pytest.mark.parametrize(
    ("error", "result"),
    [(NotFoundError("no"), "refused"), (RuntimeError("no"), "failed"), (KeyError(), "failed")],
)
def test_an_act_that_does_not_happen_is_recorded_too(
    error: Exception, result: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(type(error)), audited(Act.FILE_DELETED, "file 1", actor="user 3"):
        raise error
    assert recorded(caplog)["result"] == result
    assert recorded(caplog)["actor"] == "user 3"
