"""`multipart/form-data` (RFC 7578), read as it comes: a part's content is never held as a whole."""

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from starlette.types import Receive, Scope

from cluster.errors import BadRequestError, BodyTooLargeError, UnsupportedMediaTypeError
from deployments.ingress.errors import ClientLeftError

IDLE_TIMEOUT_S = 60.0  # between two pieces of a body
_MAX_HEADER_BYTES = 8192
_BOUNDARY = re.compile(rb'boundary=(?:"([^"\r\n]{1,70})"|([^\s;,"]{1,70}))', re.IGNORECASE)
_PARAMETER = re.compile(r';\s*(name|filename)="((?:[^"\\]|\\.)*)"', re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A field of the form. `content` is read before the next part is asked for, or is skipped."""

    name: str
    filename: str | None  # None: it is no file
    content: AsyncGenerator[bytes, None]

    async def text(self, *, max_bytes: int = 1024) -> str:
        """The whole content of a small field.

        Raises:
            BadRequestError: it is not small, or not UTF-8.
        """
        data = bytearray()
        async for piece in self.content:
            data += piece
            if len(data) > max_bytes:
                raise BadRequestError(
                    f"{self.name}: must have at most {max_bytes} bytes", param=self.name
                )
        try:
            return data.decode()
        except UnicodeDecodeError:
            raise BadRequestError(f"{self.name}: must be UTF-8", param=self.name) from None


class MultipartBody:
    """The body of one request."""

    def __init__(self, scope: Scope, receive: Receive, *, max_bytes: int) -> None:
        """`max_bytes`: of the whole body.

        Raises:
            UnsupportedMediaTypeError: the body is something else.
            BodyTooLargeError: it says that it is too large.
        """
        self._max_bytes = max_bytes
        self._num_bytes = 0
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit():
            self._check_size(int(length))
        self._delimiter = b"\r\n--" + _boundary(scope)
        self._receive = receive
        self._has_more = True
        self._waiting = bytearray(b"\r\n")  # what has come and is not read; the first line's too

    async def parts(self) -> AsyncIterator[Part]:
        """
        Raises:
            BadRequestError: it is not a form, or ends too early.
            BodyTooLargeError: it is too large.
            ClientLeftError: the connection broke.
        """
        await _skip(self._content())  # a preamble
        while not (await self._peek(2)).startswith(b"--"):
            await self._line()
            name, filename = _disposition(await self._headers())
            content = self._content()
            yield Part(name=name, filename=filename, content=content)
            await _skip(content)

    async def _content(self) -> AsyncGenerator[bytes, None]:
        """Up to the delimiter, which is taken too."""
        kept = len(self._delimiter) - 1
        while (end := self._waiting.find(self._delimiter)) < 0:
            if len(self._waiting) > kept:
                data = bytes(self._waiting[:-kept])
                del self._waiting[:-kept]
                yield data
            await self._more()
        data = bytes(self._waiting[:end])
        del self._waiting[: end + len(self._delimiter)]
        if data:
            yield data

    async def _headers(self) -> list[bytes]:
        lines = []
        num_bytes = 0
        while line := await self._line():
            lines.append(line)
            num_bytes += len(line)
            if num_bytes > _MAX_HEADER_BYTES:
                raise _malformed("the headers of a part are too long")
        return lines

    async def _line(self) -> bytes:
        while (end := self._waiting.find(b"\r\n")) < 0:
            if len(self._waiting) > _MAX_HEADER_BYTES:
                raise _malformed("a line in it is too long")
            await self._more()
        line = bytes(self._waiting[:end])
        del self._waiting[: end + 2]
        return line

    async def _peek(self, num_bytes: int) -> bytes:
        while len(self._waiting) < num_bytes:
            await self._more()
        return bytes(self._waiting[:num_bytes])

    async def _more(self) -> None:
        """Wait for some bytes."""
        if not self._has_more:
            raise _malformed("it ends before its last boundary")
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                message = await self._receive()
        except TimeoutError:
            raise BadRequestError(
                f"Nothing of the body came for {IDLE_TIMEOUT_S:g} seconds."
            ) from None
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        self._has_more = message.get("more_body", False)
        data = message.get("body", b"")
        self._num_bytes += len(data)
        self._check_size(self._num_bytes)
        self._waiting += data

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise BodyTooLargeError(
                f"The form has {num_bytes} bytes or more; the limit is {self._max_bytes}."
            )


async def _skip(content: AsyncGenerator[bytes, None]) -> None:
    async for _ in content:
        pass


def _boundary(scope: Scope) -> bytes:
    content_type = dict(scope["headers"]).get(b"content-type", b"")
    found = _BOUNDARY.search(content_type)
    if not content_type.lower().startswith(b"multipart/form-data") or found is None:
        given = content_type.decode("latin-1")[:100]
        raise UnsupportedMediaTypeError(
            f"Content-Type must be multipart/form-data with a boundary; given {given!r}"
        )
    return found[1] or found[2]


def _disposition(headers: list[bytes]) -> tuple[str, str | None]:
    """A part's name, and its file's."""
    for header in headers:
        key, _, value = header.decode("utf-8", "replace").partition(":")
        if key.strip().lower() == "content-disposition":
            given = {k.lower(): v.replace('\\"', '"') for k, v in _PARAMETER.findall(value)}
            if "name" in given:
                return given["name"], given.get("filename")
    raise _malformed("a part has no name")


def _malformed(what: str) -> BadRequestError:
    return BadRequestError(f"The body is not a form: {what}.")
