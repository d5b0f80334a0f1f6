"""What buckets and objects may be called, wherever they are kept.

Buckets follow S3's rules. A key is S3's too (at most 1,024 bytes of UTF-8), less what a path in a
folder or a URL cannot carry: empty segments, `.` and `..`, and control characters.
"""

import ipaddress
import re

from cluster.errors import ValidationError

MAX_KEY_BYTES = 1024
MAX_SEGMENT_BYTES = 255  # of a file's name, on every file system in use
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
# Control characters, and the two that XML, in which keys are listed, does not have.
_UNSENDABLE = re.compile("[\x00-\x1f\x7f\ufffe\uffff\ud800-\udfff]")


def bucket_problem(name: str) -> str | None:
    """Why a bucket cannot be called so; None when it can."""
    if not _BUCKET.fullmatch(name):
        return "must have 3 to 63 of a-z, 0-9, '.' and '-', with a letter or digit at both ends"
    if ".." in name:
        return "must not have two '.' beside each other"
    if _is_ip_address(name):
        return "must not look like an IP address"
    return None


def check_bucket_name(name: str, *, field: str = "bucket_name") -> None:
    """
    Raises:
        ValidationError: see `bucket_problem`; names `field`.
    """
    problem = bucket_problem(name)
    if problem is not None:
        raise ValidationError.of(field, f"{problem}; given {name[:100]!r}")


def key_problem(key: str) -> str | None:
    """Why an object cannot be called so; None when it can."""
    if not key:
        return "must not be empty"
    if _UNSENDABLE.search(key):
        return "must be Unicode text without control characters"
    if len(key.encode()) > MAX_KEY_BYTES:
        return f"must have at most {MAX_KEY_BYTES} bytes"
    for segment in key.split("/"):
        if not segment:
            return "must not begin or end with '/', or have two of them beside each other"
        if segment in (".", ".."):
            return "must not have '.' or '..' between slashes"
    return None


def can_begin_key(prefix: str) -> bool:
    """Whether a prefix has only what a key may have; "" is one."""
    return len(prefix) <= MAX_KEY_BYTES and not _UNSENDABLE.search(prefix)


def check_key(key: str, *, field: str = "key") -> None:
    """
    Raises:
        ValidationError: see `key_problem`; names `field`.
    """
    problem = key_problem(key)
    if problem is not None:
        raise ValidationError.of(field, f"{problem}; given {key[:100]!r}")


def check_file_key(key: str, *, field: str = "key") -> None:
    """`check_key`, and each segment can be a file's name.

    Raises:
        ValidationError: it cannot; names `field`.
    """
    check_key(key, field=field)
    longest = max(len(segment.encode()) for segment in key.split("/"))
    if longest > MAX_SEGMENT_BYTES:
        message = f"must have at most {MAX_SEGMENT_BYTES} bytes between slashes; given {longest}"
        raise ValidationError.of(field, message)


def _is_ip_address(name: str) -> bool:
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return False
    return True
