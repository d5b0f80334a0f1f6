"""One line per HTTP request, written when it is over; and the id that it goes by.

The id is the client's `x-request-id` where that is a sane token, else made up. No line has a
key, a path that a client made up, or anything of a body.
"""

import logging
import re
import time
import uuid

from starlette.types import Scope

from cluster.log_lines import fields_of
from deployments.ingress.exchange import Exchange

logger = logging.getLogger(__name__)

_HEADER = b"x-request-id"
_SANE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def request_id_of(scope: Scope) -> str:
    """What the request goes by."""
    for name, value in scope["headers"]:
        if name == _HEADER and _SANE.fullmatch(value):
            return str(value.decode("ascii"))
    return f"req_{uuid.uuid4().hex}"


def log_request(scope: Scope, exchange: Exchange, *, status: int) -> None:
    """The request is over. `status`: 499 when the client left."""
    if not logger.isEnabledFor(logging.INFO):
        return
    duration_ms = round((time.perf_counter() - exchange.started_s) * 1000, 2)
    counts = exchange.meter.counts
    logger.info(
        "%s %s %d in %.1f ms",
        scope["method"],
        exchange.route or "(no route)",
        status,
        duration_ms,
        extra=fields_of(
            method=scope["method"],
            route=exchange.route,
            status=status,
            duration_ms=duration_ms,
            key_name=exchange.key.name or None,
            model=exchange.model or None,
            answer_id=exchange.answer_id or None,
            prompt_tokens=None if counts is None else counts.prompt_tokens,
            completion_tokens=None if counts is None else counts.completion_tokens,
            finish_reason=exchange.finish_reason or None,
            failure=None if exchange.failure is None else type(exchange.failure).__name__,
        ),
    )
