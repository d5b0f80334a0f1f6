"""A request to the S3 face, decoded: which bucket and key, which query, whose."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote_to_bytes

from starlette.types import Receive, Scope

from cluster.types import BucketRef
from deployments.ingress.s3.errors import S3Error

MAX_QUERY_FIELDS = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Request:
    """`bucket` and `key` are "" where the path ends before them; headers have lower-case names."""

    method: str
    path: str  # as it was sent, below the face's own
    bucket: str
    key: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    receive: Receive
    request_id: str
    tenant: str = ""

    @classmethod
    def unparsed(cls, scope: Scope, receive: Receive) -> "S3Request":
        """What an error is told to before the rest can be read."""
        return cls(
            method=scope["method"],
            path=scope["path"],
            bucket="",
            key="",
            query={},
            headers={},
            receive=receive,
            request_id=secrets.token_hex(8).upper(),
        )

    @property
    def ref(self) -> BucketRef:
        return BucketRef(self.tenant, self.bucket)


def parse_request(scope: Scope, receive: Receive, *, prefix: str) -> S3Request:
    """
    Args:
        prefix: the path of the face, like `/v2/storage/s3`.

    Raises:
        S3Error: the path or the query is not UTF-8.
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    path = raw.decode("latin-1").removeprefix(prefix)
    bucket, _, key = path.removeprefix("/").partition("/")
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        text = value.decode("latin-1").strip()
        key_name = name.decode("latin-1").lower()
        headers[key_name] = f"{headers[key_name]},{text}" if key_name in headers else text
    return S3Request(
        method=scope["method"],
        path=path,
        bucket=_decoded(bucket),
        key=_decoded(key),
        query=_query(scope["query_string"]),
        headers=headers,
        receive=receive,
        request_id=secrets.token_hex(8).upper(),
    )


def _decoded(quoted: str) -> str:
    try:
        return unquote_to_bytes(quoted).decode()
    except UnicodeDecodeError:
        raise S3Error("InvalidURI", "The path is not UTF-8.") from None


def _query(raw: bytes) -> dict[str, str]:
    try:
        pairs = parse_qsl(
            raw.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError:  # UnicodeDecodeError is one
        raise S3Error("InvalidURI", "The query is not UTF-8, or has too many fields.") from None
    return dict(pairs)
