"""The one place where errors become HTTP: any exception to a status, headers and a body.

Unexpected ones are logged in full under a reference, and the client sees the reference only.
"""

import logging
import uuid

from starlette.exceptions import HTTPException
from starlette.types import Send

from cluster.errors import (
    DeadlineExceededError,
    InternalError,
    MethodNotAllowedError,
    NotFoundError,
    ServingError,
)

logger = logging.getLogger(__name__)

STATUS_CLIENT_LEFT = 499  # for metrics; nobody is there to read it


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to answer."""


def as_serving_error(error: Exception) -> ServingError:
    """What the client may see of an exception."""
    if isinstance(error, ServingError):
        return error
    if isinstance(error, HTTPException) and error.status_code == 404:
        return NotFoundError("There is no such path.")
    if isinstance(error, HTTPException) and error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowedError(f"This path allows {allowed} only.")
    reference = uuid.uuid4().hex[:12]
    logger.error("unexpected error %s", reference, exc_info=error)
    return InternalError(f"Unexpected error; the server's log has it under {reference}.")


def error_headers(error: Exception, answer: ServingError) -> list[tuple[bytes, bytes]]:
    """Headers beyond the content's type and length."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(error, HTTPException) and error.headers and "Allow" in error.headers:
        headers.append((b"allow", error.headers["Allow"].encode("latin-1")))
    if answer.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if answer.retry_after_s is not None:
        headers.append((b"retry-after", str(max(1, round(answer.retry_after_s))).encode()))
    if isinstance(answer, DeadlineExceededError):
        headers.append((b"x-should-retry", b"false"))  # read by the openai and anthropic SDKs
    return headers


async def send_json(
    send: Send,
    body: bytes,
    *,
    status: int = 200,
    headers: list[tuple[bytes, bytes]] | None = None,
    is_complete: bool = True,
) -> None:
    """A whole JSON answer. `is_complete=False` leaves the exchange open though all is sent."""
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                *(headers or []),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": not is_complete})
