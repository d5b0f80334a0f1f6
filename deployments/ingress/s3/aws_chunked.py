"""The `aws-chunked` encoding: a body in chunks that say their size, with checksums behind it.

    <size in hex>[;chunk-signature=<hex>] CRLF <bytes> CRLF
    …
    0[;chunk-signature=<hex>] CRLF [<name>:<value> CRLF …] CRLF

Chunk signatures are not looked at, as request signatures are not (see `authentication`).
https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from collections.abc import AsyncIterator

from deployments.ingress.s3.errors import S3Error

MAX_LINE_BYTES = 4096
MAX_TRAILERS = 20
_HEX = frozenset(b"0123456789abcdefABCDEF")


class ChunkedBody:
    """Decodes a body as it comes; `trailers` are complete when the iteration ends."""

    def __init__(self, body: AsyncIterator[bytes]) -> None:
        self._body = body
        self._waiting = bytearray()
        self.trailers: dict[str, str] = {}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """
        Raises:
            S3Error: it is not so encoded, or ends too early.
        """
        while (remaining := self._size(await self._line())) > 0:
            while remaining:
                if not self._waiting:
                    await self._more()
                piece = bytes(self._waiting[:remaining])
                del self._waiting[:remaining]
                remaining -= len(piece)
                yield piece
            if await self._line():
                raise _malformed("a chunk is longer than it says")
        num_trailers = 0
        while line := await self._line():
            num_trailers += 1
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or num_trailers > MAX_TRAILERS:
                raise _malformed("a trailer is not like `name:value`, or there are too many")
            self.trailers[name.strip().lower()] = value.strip()

    @staticmethod
    def _size(line: bytes) -> int:
        digits = line.partition(b";")[0].strip()
        if not 0 < len(digits) <= 16 or not _HEX.issuperset(digits):
            raise _malformed("a chunk does not begin with its size")
        return int(digits, 16)

    async def _line(self) -> bytes:
        """Up to the next CRLF."""
        while (end := self._waiting.find(b"\r\n", 0, MAX_LINE_BYTES)) < 0:
            if len(self._waiting) >= MAX_LINE_BYTES:
                raise _malformed("a line is too long")
            await self._more()
        line = bytes(self._waiting[:end])
        del self._waiting[: end + 2]
        return line

    async def _more(self) -> None:
        data = await anext(self._body, None)
        if data is None:
            raise S3Error("IncompleteBody", "The aws-chunked body ends before its last chunk.")
        self._waiting += data


def _malformed(why: str) -> S3Error:
    return S3Error("InvalidRequest", f"The body is not aws-chunked: {why}.")
