"""AWS Signature Version 4 in a request's headers: making one, and checking one that came.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hashlib
import hmac
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
UNSIGNED_PAYLOAD = "UNSIGNED-PAYLOAD"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
_SERVICE = "s3"


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedRequest:
    """What a signature covers. `path` is encoded as it is sent; `headers` have lower-case names."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...]  # decoded
    headers: Mapping[str, str]
    signed_headers: tuple[str, ...]  # sorted
    payload_sha256: str  # or one of S3's words for "not that"

    def canonical(self) -> str:
        lines = [self.method, self.path, encode_query(self.query)]
        lines += [
            f"{name}:{' '.join(self.headers.get(name, '').split())}" for name in self.signed_headers
        ]
        return "\n".join([*lines, "", ";".join(self.signed_headers), self.payload_sha256])


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialScope:
    """When and for what a signature was made."""

    timestamp: str  # 20260131T235959Z
    region: str
    service: str = _SERVICE

    @property
    def text(self) -> str:
        return f"{self.timestamp[:8]}/{self.region}/{self.service}/aws4_request"


def signature(request: SignedRequest, scope: CredentialScope, *, secret: str) -> str:
    """The hexadecimal signature of a request."""
    digest = hashlib.sha256(request.canonical().encode()).hexdigest()
    to_sign = "\n".join([ALGORITHM, scope.timestamp, scope.text, digest])
    key = f"AWS4{secret}".encode()
    for part in (scope.timestamp[:8], scope.region, scope.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    return hmac.new(key, to_sign.encode(), "sha256").hexdigest()


def encode_query(query: Iterable[tuple[str, str]]) -> str:
    """A query as it is signed; also a query as it can be sent."""
    pairs = sorted((quote(name, safe="-_.~"), quote(value, safe="-_.~")) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What an S3 endpoint knows us by."""

    access_key_id: str
    secret_access_key: str
    session_token: str | None = None


def signed_headers(
    method: str,
    host: str,
    path: str,
    query: Iterable[tuple[str, str]],
    *,
    credentials: Credentials,
    region: str,
) -> dict[str, str]:
    """The headers that sign a request without a body."""
    scope = CredentialScope(timestamp=datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ"), region=region)
    headers = {
        "host": host,
        "x-amz-content-sha256": EMPTY_SHA256,
        "x-amz-date": scope.timestamp,
    }
    if credentials.session_token is not None:
        headers["x-amz-security-token"] = credentials.session_token
    request = SignedRequest(
        method=method,
        path=path,
        query=tuple(query),
        headers=headers,
        signed_headers=tuple(sorted(headers)),
        payload_sha256=EMPTY_SHA256,
    )
    proof = signature(request, scope, secret=credentials.secret_access_key)
    headers["authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key_id}/{scope.text}, "
        f"SignedHeaders={';'.join(request.signed_headers)}, Signature={proof}"
    )
    return headers
