"""If-Match and its relatives, and Range: which part of an object a client wants, if any.

RFC 9110, sections 13 and 14.
"""

import re
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from cluster.storage.stored_object import ObjectInfo
from deployments.ingress.s3.errors import S3Error
from deployments.ingress.s3.request import S3Request

_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")  # more digits are no number of bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRange:
    """From `start` up to `stop`, of `total` bytes."""

    start: int
    stop: int
    total: int

    @property
    def header(self) -> str:
        return f"bytes {self.start}-{self.stop - 1}/{self.total}"


def is_unmodified(request: S3Request, info: ObjectInfo) -> bool:
    """Whether the client's copy is as good: 304.

    Raises:
        S3Error: PreconditionFailed.
    """
    headers = request.headers
    wanted = headers.get("if-match")
    if wanted is not None and not _names(wanted, info.etag):
        raise _failed("If-Match")
    moment = _time(headers.get("if-unmodified-since"))
    if wanted is None and moment is not None and int(info.modified_at) > moment:
        raise _failed("If-Unmodified-Since")
    if (known := headers.get("if-none-match")) is not None:
        return _names(known, info.etag)
    moment = _time(headers.get("if-modified-since"))
    return moment is not None and int(info.modified_at) <= moment


def wanted_range(request: S3Request, num_bytes: int) -> ByteRange | None:
    """The part that is wanted; None: all. Several parts at once, or other units: all.

    Raises:
        S3Error: InvalidRange.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").replace(" ", ""))
    if match is None or not (match[1] or match[2]):
        return None
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, num_bytes) if match[2] else num_bytes
        if match[2] and int(match[2]) < start:
            return None  # not a range, says the RFC
    else:
        start, stop = max(0, num_bytes - int(match[2])), num_bytes
    if start >= stop:
        raise S3Error("InvalidRange", f"The object has {num_bytes} bytes.")
    return ByteRange(start=start, stop=stop, total=num_bytes)


def _names(header: str, etag: str) -> bool:
    if header.strip() == "*":
        return True
    given = [item.strip().removeprefix("W/").strip('"') for item in header.split(",")]
    return etag in given


def _time(value: str | None) -> float | None:
    """A date; what is none does not count."""
    if value is None:
        return None
    try:
        return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError):
        return None


def _failed(header: str) -> S3Error:
    return S3Error("PreconditionFailed", f"The object does not meet {header}.")
