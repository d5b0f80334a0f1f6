"""The bytes of an upload: unwrapped, counted, and compared with what the client says of them.

MD5, SHA-256, SHA-1 and CRC32 are checked. CRC32C and CRC64NVME are read and not checked: there is
nothing in Python's library that computes them at the speed of a disk.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import zlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from starlette.types import Receive

from cluster.storage.signature import UNSIGNED_PAYLOAD
from deployments.ingress.errors import ClientLeftError
from deployments.ingress.s3.aws_chunked import ChunkedBody
from deployments.ingress.s3.errors import S3Error
from deployments.ingress.s3.request import S3Request

IDLE_TIMEOUT_S = 60.0  # between two pieces of a body
CHECKSUM_PREFIX = "x-amz-checksum-"
_SHA256 = "x-amz-content-sha256"


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...

    def digest(self) -> bytes: ...


class _CRC32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes, /) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


_CHECKSUMS: dict[str, Callable[[], _Digest]] = {
    "crc32": _CRC32,
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Claim:
    """What the client says a digest of the body is; `header` may come as a trailer."""

    header: str
    digest: _Digest
    expected: bytes | None
    error_code: str = "BadDigest"


class Payload:
    """The body of one upload. Iterate once; it raises at its end when a claim does not hold."""

    def __init__(self, request: S3Request, *, max_bytes: int) -> None:
        """
        Raises:
            S3Error: it is too large, or a claim cannot be read.
        """
        self._max_bytes = max_bytes
        headers = request.headers
        is_chunked = headers.get(_SHA256, "").startswith("STREAMING-") or "aws-chunked" in [
            token.strip() for token in headers.get("content-encoding", "").split(",")
        ]
        length = headers.get("x-amz-decoded-content-length" if is_chunked else "content-length")
        #: As the client says; None: it does not.
        self.num_expected = _length(length)
        self._check_size(self.num_expected or 0)
        body = read_body(request.receive)
        self._chunked = ChunkedBody(body) if is_chunked else None
        self._body = body
        self._claims = list(_claims(request))
        #: Checksums that were found to be right, as headers of the answer.
        self.verified: dict[str, str] = {}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        num_bytes = 0
        async for data in self._body if self._chunked is None else self._chunked:
            num_bytes += len(data)
            self._check_size(num_bytes)
            for claim in self._claims:
                claim.digest.update(data)
            yield data
        if self.num_expected is not None and num_bytes != self.num_expected:
            raise S3Error(
                "IncompleteBody", f"The body has {num_bytes} bytes, not {self.num_expected}."
            )
        for claim in self._claims:
            self._check(claim)

    def _check(self, claim: _Claim) -> None:
        expected = claim.expected
        if expected is None:
            trailers = {} if self._chunked is None else self._chunked.trailers
            if claim.header not in trailers:
                raise S3Error("InvalidRequest", f"The trailer {claim.header} did not come.")
            expected = _base64(claim.header, trailers[claim.header])
        if expected != claim.digest.digest():
            raise S3Error(claim.error_code, f"The body does not have the {claim.header} given.")
        if claim.header.startswith(CHECKSUM_PREFIX):
            self.verified[claim.header] = base64.b64encode(expected).decode()

    def _check_size(self, num_bytes: int) -> None:
        if num_bytes > self._max_bytes:
            raise S3Error(
                "EntityTooLarge",
                f"The object has {num_bytes} bytes or more; the limit is {self._max_bytes}.",
            )


async def read_body(receive: Receive) -> AsyncIterator[bytes]:
    """A request's body as it comes.

    Raises:
        ClientLeftError: the connection broke.
        S3Error: nothing came for a minute.
    """
    has_more = True
    while has_more:
        try:
            async with asyncio.timeout(IDLE_TIMEOUT_S):
                message = await receive()
        except TimeoutError:
            raise S3Error("RequestTimeout", "Nothing came for too long.") from None
        if message["type"] == "http.disconnect":
            raise ClientLeftError
        has_more = message.get("more_body", False)
        if message.get("body"):
            yield message["body"]


async def read_document(request: S3Request, *, max_bytes: int) -> bytes:
    """A whole small body, checked as an upload is.

    Raises:
        S3Error: it is too large, or not what the client says it is.
    """
    return b"".join([data async for data in Payload(request, max_bytes=max_bytes)])


def _claims(request: S3Request) -> list[_Claim]:
    headers = request.headers
    claims = []
    if (md5 := headers.get("content-md5")) is not None:
        expected = _base64("content-md5", md5)
        digest = hashlib.md5(usedforsecurity=False)
        if len(expected) != digest.digest_size:
            raise S3Error("InvalidDigest", "The content-md5 given is not one.")
        claims.append(_Claim(header="content-md5", digest=digest, expected=expected))
    sha256 = headers.get(_SHA256, UNSIGNED_PAYLOAD)
    if sha256 != UNSIGNED_PAYLOAD and not sha256.startswith("STREAMING-"):
        if not re.fullmatch("[0-9a-fA-F]{64}", sha256):
            raise S3Error("InvalidArgument", f"The {_SHA256} given is not one.")
        expected = bytes.fromhex(sha256)
        claims.append(
            _Claim(
                header=_SHA256,
                digest=hashlib.sha256(),
                expected=expected,
                error_code="XAmzContentSHA256Mismatch",
            )
        )
    trailers = {name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",")}
    for name, make_digest in _CHECKSUMS.items():
        header = CHECKSUM_PREFIX + name
        if header in headers:
            given = _base64(header, headers[header])
            claims.append(_Claim(header=header, digest=make_digest(), expected=given))
        elif header in trailers:
            claims.append(_Claim(header=header, digest=make_digest(), expected=None))
    return claims


def _base64(header: str, value: str) -> bytes:
    try:
        return base64.b64decode(value, validate=True)
    except binascii.Error:
        raise S3Error("InvalidDigest", f"The {header} given is not base64.") from None


def _length(value: str | None) -> int | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise S3Error("InvalidArgument", f"The length {value[:40]!r} is not one.")
    return int(value)
