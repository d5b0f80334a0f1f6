"""Buckets at an S3-compatible endpoint: objects through `obstore`, the rest signed here.

`obstore` has no calls for buckets, and its listing ends at the first key that it cannot address
(`a//b`, `folder/`); those are left out of listings here, since nobody could read them.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar
from urllib.parse import quote, urlsplit

import httpx
import obstore
from obstore import exceptions
from obstore.store import S3Store as ObstoreBucket

from cluster.errors import ServiceUnavailableError
from cluster.storage.errors import (
    BucketExistsError,
    BucketNotEmptyError,
    BucketNotFoundError,
    ObjectNotFoundError,
    StorageCredentialsError,
    check_size,
)
from cluster.storage.names import bucket_problem, check_bucket_name, check_key, key_problem
from cluster.storage.s3_put import put_or_abort
from cluster.storage.signature import Credentials, encode_query, signed_headers
from cluster.storage.stored_object import BucketInfo, ObjectInfo, OpenObject
from cluster.storage.xml_document import XMLError, children, parse_xml, text_of
from cluster.types import BucketRef

logger = logging.getLogger(__name__)

CONNECT_TIMEOUT_S = 2.0
READ_TIMEOUT_S = 30.0  # between two pieces of an object
ANSWER_TIMEOUT_S = 10.0  # of a call about a bucket
RETRY_AFTER_S = 5.0
NUM_RETRIES = 2
READ_BYTES = 1024 * 1024
PAGE_SIZE = 1000

_RETRY_STATUSES = frozenset({429, 500, 502, 503, 504})
_CREDENTIAL_CODES = frozenset(
    {"AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken"}
)
Query = tuple[tuple[str, str], ...]
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Endpoint:
    """Where the buckets are, and what they are called there."""

    url: str  # without a trailing slash
    region: str
    credentials: Credentials
    bucket_name: str = "{bucket}"  # a tenant's bucket there; may have {tenant}
    is_virtual_hosted: bool = False  # bucket.host/key, not host/bucket/key

    def bucket_of(self, ref: BucketRef) -> str:
        return self.bucket_name.format(tenant=ref.tenant, bucket=ref.name)

    def bucket_url(self, name: str) -> str:
        if not self.is_virtual_hosted:
            return f"{self.url}/{name}"
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{name}.{parts.netloc}{parts.path}"


class S3Store:
    """See the module."""

    def __init__(self, endpoint: S3Endpoint) -> None:
        self._endpoint = endpoint
        self._buckets: dict[str, ObstoreBucket] = {}
        timeout = httpx.Timeout(ANSWER_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        self._http = httpx.AsyncClient(timeout=timeout)

    async def close(self) -> None:
        """Nothing else may be called afterwards."""
        await self._http.aclose()

    async def list_buckets(self, tenant: str) -> list[BucketInfo] | None:
        """None: which of the endpoint's buckets are a tenant's is not known."""
        return None

    async def bucket_exists(self, ref: BucketRef) -> bool:
        if bucket_problem(self._endpoint.bucket_of(ref)) is not None:
            return False
        response = await self._call("HEAD", ref)
        if response.status_code == httpx.codes.NOT_FOUND:
            return False
        self._check(response, ref)
        return True

    async def create_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            ValidationError: a bucket cannot be called so.
            BucketExistsError: it is there already.
        """
        check_bucket_name(ref.name)
        check_bucket_name(self._endpoint.bucket_of(ref))
        if await self.bucket_exists(ref):
            raise _bucket_exists(ref)
        self._check(await self._call("PUT", ref), ref)

    async def delete_bucket(self, ref: BucketRef) -> None:
        """
        Raises:
            BucketNotFoundError: there is none.
            BucketNotEmptyError: it has objects.
        """
        self._check(await self._call("DELETE", ref), ref)

    async def list_objects(self, ref: BucketRef, prefix: str = "") -> AsyncIterator[ObjectInfo]:
        """In the endpoint's order. Objects that cannot be addressed are left out, and logged.

        Raises:
            BucketNotFoundError: there is none.
        """
        token: str | None = None
        num_left_out = 0
        while True:
            query = [("list-type", "2"), ("max-keys", str(PAGE_SIZE)), ("prefix", prefix)]
            query += [("continuation-token", token)] if token else []
            response = await self._call("GET", ref, tuple(query))
            self._check(response, ref)
            infos, token = _listed(response.content)
            for info in infos:
                if key_problem(info.key) is None:
                    yield info
                else:
                    num_left_out += 1
            if token is None:
                break
        if num_left_out:
            logger.info("%s: left out %d objects with unusual keys", ref.name, num_left_out)

    async def head(self, ref: BucketRef, key: str) -> ObjectInfo:
        """
        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
        """
        options: obstore.GetOptions = {"head": True}
        found = await self._object_call(
            ref, key, obstore.get_async(self._bucket(ref, key), key, options=options)
        )
        meta, content_type = found.meta, found.attributes.get("Content-Type")
        return ObjectInfo(
            key=key,
            num_bytes=meta["size"],
            etag=(meta["e_tag"] or "").strip('"'),
            modified_at=meta["last_modified"].timestamp(),
            headers={"content-type": content_type} if content_type else {},
        )

    @asynccontextmanager
    async def open(self, ref: BucketRef, key: str) -> AsyncIterator[OpenObject]:
        """An object to read. When it is replaced meanwhile, reading raises ObjectNotFoundError.

        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
        """
        info = await self.head(ref, key)
        yield OpenObject(info=info, read=lambda a, b: self._read(ref, info, a, b))

    async def get(self, ref: BucketRef, key: str, *, max_bytes: int) -> tuple[ObjectInfo, bytes]:
        """A whole object.

        Raises:
            BucketNotFoundError, ObjectNotFoundError: there is none.
            ObjectTooLargeError: it has more than `max_bytes`.
        """
        async with self.open(ref, key) as found:
            check_size(found.info, max_bytes)
            return found.info, b"".join([chunk async for chunk in found.chunks()])

    async def put(
        self,
        ref: BucketRef,
        key: str,
        content: bytes | AsyncIterable[bytes],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> ObjectInfo:
        """Store an object, whole or not at all. Of `headers` only content-type is kept.

        Raises:
            ValidationError: no object can be called so.
            BucketNotFoundError: there is none.
        """
        bucket = self._bucket(ref, key)
        content_type = (headers or {}).get("content-type")
        put = put_or_abort(bucket, key, content, content_type)
        await self._object_call(ref, key, put)
        return await self.head(ref, key)

    async def delete(self, ref: BucketRef, key: str) -> None:
        """Delete an object, if it is there.

        Raises:
            BucketNotFoundError: there is none.
        """
        try:
            await self._object_call(ref, key, obstore.delete_async(self._bucket(ref, key), key))
        except ObjectNotFoundError:
            return

    def url(self, ref: BucketRef, key: str) -> str:
        """Where it can be had, by those who have credentials for the endpoint."""
        return f"{self._endpoint.bucket_url(self._endpoint.bucket_of(ref))}/{quote(key)}"

    async def _read(
        self, ref: BucketRef, info: ObjectInfo, start: int, stop: int
    ) -> AsyncGenerator[bytes, None]:
        if start >= stop:
            return
        options: obstore.GetOptions = {"range": (start, stop), "if_match": f'"{info.etag}"'}
        bucket = self._bucket(ref, info.key)
        found = await self._object_call(
            ref, info.key, obstore.get_async(bucket, info.key, options=options)
        )
        stream = found.stream(min_chunk_size=READ_BYTES)
        while (data := await self._object_call(ref, info.key, _next_of(stream))) is not None:
            yield bytes(data)

    def _bucket(self, ref: BucketRef, key: str) -> ObstoreBucket:
        """
        Raises:
            ValidationError: no object can be called so.
            BucketNotFoundError: no bucket can be called so.
        """
        check_key(key)
        name = self._endpoint.bucket_of(ref)
        if bucket_problem(name) is not None:
            raise BucketNotFoundError.of(ref)
        if name not in self._buckets:
            self._buckets[name] = self._connected(name)
        return self._buckets[name]

    def _connected(self, name: str) -> ObstoreBucket:
        endpoint = self._endpoint
        is_virtual = endpoint.is_virtual_hosted
        return ObstoreBucket(
            name,
            endpoint=endpoint.bucket_url(name) if is_virtual else endpoint.url,
            region=endpoint.region,
            access_key_id=endpoint.credentials.access_key_id,
            secret_access_key=endpoint.credentials.secret_access_key,
            session_token=endpoint.credentials.session_token or "",
            virtual_hosted_style_request=is_virtual,
            client_options={
                "allow_http": True,
                "connect_timeout": timedelta(seconds=CONNECT_TIMEOUT_S),
                "read_timeout": timedelta(seconds=READ_TIMEOUT_S),
                "timeout": timedelta(hours=1),  # of one request with its body
            },
            retry_config={
                "max_retries": NUM_RETRIES,
                "retry_timeout": timedelta(seconds=2 * CONNECT_TIMEOUT_S),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=1),
                    "base": 2,
                },
            },
        )

    async def _object_call(self, ref: BucketRef, key: str, call: Awaitable[T]) -> T:
        """An `obstore` call, its errors translated. What is missing is asked for where it fails."""
        try:
            return await call
        except (FileNotFoundError, exceptions.PreconditionError) as error:
            if await self.bucket_exists(ref):
                raise ObjectNotFoundError.of(ref, key) from error
            raise BucketNotFoundError.of(ref) from error
        except (exceptions.PermissionDeniedError, exceptions.UnauthenticatedError) as error:
            raise self._refused(ref) from error
        except exceptions.BaseError as error:
            reason = str(error).partition("\n")[0]
            raise self._away(reason) from error

    async def _call(self, method: str, ref: BucketRef, query: Query = ()) -> httpx.Response:
        """A request about a bucket, repeated where that may help.

        Raises:
            BucketNotFoundError: no bucket can be called so.
            ServiceUnavailableError: the endpoint does not answer, or only with its own troubles.
        """
        if bucket_problem(self._endpoint.bucket_of(ref)) is not None:
            raise BucketNotFoundError.of(ref)
        for attempt in range(NUM_RETRIES + 1):
            is_last = attempt == NUM_RETRIES
            try:
                response = await self._request(method, ref, query)
            except httpx.TimeoutException as error:
                raise self._away(f"{type(error).__name__} after several seconds") from error
            except httpx.TransportError as error:
                if is_last:
                    raise self._away(str(error) or type(error).__name__) from error
            else:
                if response.status_code not in _RETRY_STATUSES:
                    return response
                if is_last:
                    raise self._away(f"it answers with status {response.status_code}")
            await asyncio.sleep(0.1 * 2**attempt)
        raise AssertionError("the last attempt returns or raises")

    async def _request(self, method: str, ref: BucketRef, query: Query) -> httpx.Response:
        url = urlsplit(self._endpoint.bucket_url(self._endpoint.bucket_of(ref)))
        path = url.path or "/"
        headers = signed_headers(
            method,
            url.netloc,
            path,
            query,
            credentials=self._endpoint.credentials,
            region=self._endpoint.region,
        )
        target = f"{url.scheme}://{url.netloc}{path}"
        target += f"?{encode_query(query)}" if query else ""
        return await self._http.request(method, target, headers=headers)

    def _check(self, response: httpx.Response, ref: BucketRef) -> None:
        """Raise what an answer about a bucket says."""
        if response.is_success:
            return
        code = _error_code(response.content)
        if code == "NoSuchBucket" or response.status_code == httpx.codes.NOT_FOUND:
            raise BucketNotFoundError.of(ref)
        if code == "BucketNotEmpty":
            message = f"The bucket {ref.name!r} is not empty."
            raise BucketNotEmptyError(message, param="bucket_name")
        if code in ("BucketAlreadyExists", "BucketAlreadyOwnedByYou"):
            raise _bucket_exists(ref)
        if code in _CREDENTIAL_CODES or response.status_code in (401, 403):
            raise self._refused(ref)
        raise self._away(f"it answers with status {response.status_code} {code}".strip())

    def _away(self, reason: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"The object store at {self._endpoint.url} does not answer: {reason}",
            retry_after_s=RETRY_AFTER_S,
        )

    def _refused(self, ref: BucketRef) -> StorageCredentialsError:
        return StorageCredentialsError(
            f"The object store at {self._endpoint.url} refuses the credentials of the "
            f"configuration (storage.s3_access_key_id) for the bucket {ref.name!r}."
        )


async def _next_of(stream: AsyncIterator[bytes]) -> bytes | None:
    return await anext(stream, None)


def _bucket_exists(ref: BucketRef) -> BucketExistsError:
    return BucketExistsError(f"There is a bucket {ref.name!r} already.", param="bucket_name")


def _listed(content: bytes) -> tuple[list[ObjectInfo], str | None]:
    """The objects of one answer, and the token of the next."""
    try:
        root = parse_xml(content)
    except XMLError as error:
        raise ServiceUnavailableError(f"The object store's listing is broken: {error}") from error
    infos = [
        ObjectInfo(
            key=text_of(item, "Key") or "",
            num_bytes=int(text_of(item, "Size") or 0),
            etag=(text_of(item, "ETag") or "").strip('"'),
            modified_at=_timestamp(text_of(item, "LastModified")),
        )
        for item in children(root, "Contents")
    ]
    is_truncated = text_of(root, "IsTruncated") == "true"
    return infos, text_of(root, "NextContinuationToken") if is_truncated else None


def _timestamp(text: str | None) -> float:
    return datetime.fromisoformat(text).timestamp() if text else 0.0


def _error_code(content: bytes) -> str:
    try:
        return text_of(parse_xml(content), "Code") or ""
    except XMLError:
        return ""
