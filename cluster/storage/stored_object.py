"""An object as everyone sees it: its facts, and its bytes while it is open."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """What is known of an object without reading it.

    `etag` has no quotes and changes whenever the content does. It is the content's MD5 (or S3's
    digest of parts) for what was put through Shoal or S3, and made of inode, size and time, with
    hyphens in between, for files that were copied into the folder by hand.
    """

    key: str
    num_bytes: int
    etag: str
    modified_at: float  # unix seconds
    headers: Mapping[str, str] = field(default_factory=dict)  # content-type, x-amz-meta-…

    @property
    def content_type(self) -> str | None:
        return self.headers.get("content-type")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenObject:
    """An object being read: always the version that `info` describes.

    `read(start, stop)` yields the bytes from `start` up to `stop`, some at a time.
    """

    info: ObjectInfo
    read: Callable[[int, int], AsyncIterator[bytes]]

    def chunks(self) -> AsyncIterator[bytes]:
        """All its bytes."""
        return self.read(0, self.info.num_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketInfo:
    """A tenant's bucket; `modified_at` is when it was made, or its uppermost level changed."""

    name: str
    modified_at: float  # unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPage:
    """A part of a listing. `next_after`: where the next part begins; None: this was the last."""

    objects: list[ObjectInfo]
    common_prefixes: list[str]
    next_after: bytes | None
