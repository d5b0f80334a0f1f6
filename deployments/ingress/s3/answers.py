"""What the S3 face sends: headers, XML documents, and an object's bytes at the client's pace."""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import formatdate
from xml.sax.saxutils import escape

from starlette.types import Send

from deployments.ingress.errors import ClientLeftError
from deployments.ingress.s3.errors import S3Error
from deployments.ingress.s3.request import S3Request

IDLE_TIMEOUT_S = 60.0  # between two pieces of a body
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_DECLARATION = b'<?xml version="1.0" encoding="UTF-8"?>\n'

# A document's content: texts, or (name, content) for elements.
XML = str | int | Iterable["tuple[str, XML]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer. `num_bytes`: what content-length says where the body is not sent (HEAD)."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    num_bytes: int | None = None
    closes: bool = False  # the connection ends with it


async def send_answer(send: Send, request: S3Request, answer: Answer) -> None:
    num_bytes = len(answer.body) if answer.num_bytes is None else answer.num_bytes
    await send_start(
        send, request, status=answer.status, headers=answer.headers, num_bytes=num_bytes,
        closes=answer.closes,
    )  # fmt: skip
    body = b"" if request.method == "HEAD" else answer.body
    await send({"type": "http.response.body", "body": body, "more_body": answer.closes})


async def send_start(
    send: Send,
    request: S3Request,
    *,
    status: int,
    headers: Mapping[str, str],
    num_bytes: int,
    closes: bool = False,
) -> None:
    """The status and the headers. 204 and 304 have no length."""
    fields = {"x-amz-request-id": request.request_id, **headers}
    if status not in (204, 304):
        fields["content-length"] = str(num_bytes)
    if closes:
        fields["connection"] = "close"
    raw = [(name.encode("latin-1"), _header_value(value)) for name, value in fields.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def send_chunks(send: Send, chunks: AsyncIterator[bytes]) -> None:
    """A body; the server's flow control is awaited after each piece.

    Raises:
        ClientLeftError: the client takes nothing for a minute.
    """
    async for data in chunks:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError:
            raise ClientLeftError from None
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def xml_answer(root: str, content: XML, *, headers: Mapping[str, str] | None = None) -> Answer:
    """A document as S3 sends it."""
    body = _DECLARATION + f'<{root} xmlns="{NAMESPACE}">{_xml(content)}</{root}>'.encode()
    return Answer(body=body, headers={"content-type": "application/xml", **(headers or {})})


def error_answer(error: S3Error, request: S3Request) -> Answer:
    content = (
        ("Code", error.code),
        ("Message", error.message),
        ("Resource", request.path),
        ("RequestId", request.request_id),
    )
    headers = {"content-type": "application/xml"}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s)))
    body = _DECLARATION + f"<Error>{_xml(content)}</Error>".encode()
    return Answer(status=error.status, body=body, headers=headers)


def xml_time(unix_s: float) -> str:
    moment = datetime.fromtimestamp(unix_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03}Z"


def http_time(unix_s: float) -> str:
    return formatdate(int(unix_s), usegmt=True)


def _xml(content: XML) -> str:
    if isinstance(content, str | int):
        # What XML cannot say even escaped comes from a client's own query only.
        text = "".join(char for char in str(content) if char >= " " or char in "\t\n\r")
        return escape(text, {"\r": "&#13;"})
    return "".join(f"<{name}>{_xml(child)}</{name}>" for name, child in content)


def _header_value(value: str) -> bytes:
    """
    Raises:
        S3Error: it cannot be a header's value; it came from the query or another client.
    """
    if any(char < " " or char == "\x7f" for char in value):
        raise S3Error("InvalidArgument", "A header's value has control characters.")
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        raise S3Error("InvalidArgument", "A header's value is not Latin-1.") from None
