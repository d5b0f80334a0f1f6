"""Operations on objects: put, get, look, copy, delete."""

from urllib.parse import unquote

from starlette.types import Send

from cluster.audit import Act, audited
from cluster.errors import ValidationError
from cluster.storage.errors import ObjectNotFoundError
from cluster.storage.folder_store import FolderStore
from cluster.storage.names import check_file_key
from cluster.storage.stored_object import ObjectInfo, OpenObject
from cluster.tenants.storage_quota import StorageQuota
from cluster.types import BucketRef
from deployments.ingress.responses import unless_client_leaves
from deployments.ingress.s3.answers import (
    Answer,
    http_time,
    send_answer,
    send_chunks,
    send_start,
    xml_answer,
    xml_time,
)
from deployments.ingress.s3.conditions import is_unmodified, wanted_range
from deployments.ingress.s3.errors import S3Error, not_implemented
from deployments.ingress.s3.payload import Payload
from deployments.ingress.s3.request import S3Request
from deployments.ingress.s3.routes import ChangeListener
from deployments.ingress.s3.stored_headers import (
    DEFAULT_CONTENT_TYPE,
    check_headers,
    kept_headers,
)

COPY_SOURCE = "x-amz-copy-source"
_OVERRIDE_PREFIX = "response-"  # of a query's names: ?response-content-type=…


class ObjectOperations:
    """See the module."""

    def __init__(
        self,
        store: FolderStore,
        changed: ChangeListener,
        *,
        max_object_bytes: int,
        quota: StorageQuota,
    ) -> None:
        self._store = store
        self._quota = quota
        self._changed = changed
        self._max_object_bytes = max_object_bytes

    async def put(self, request: S3Request, send: Send) -> None:
        check_headers(request.headers)
        if COPY_SOURCE in request.headers:
            await self._copy(request, send)
            return
        payload = Payload(request, max_bytes=self._max_object_bytes)
        async with self._quota.upload(request.tenant, num_bytes=payload.num_expected) as upload:
            num_replaced = await self._num_bytes(request) if upload.is_limited else 0
            info = await self._store.put(
                request.ref,
                request.key,
                upload.counted(payload),
                headers=kept_headers(request.headers),
                is_new=_is_to_be_new(request),
            )
            upload.stored(num_replaced=num_replaced)
        await self._changed(request.ref)
        headers = {"etag": f'"{info.etag}"', **payload.verified}
        await send_answer(send, request, Answer(headers=headers))

    async def head(self, request: S3Request, send: Send) -> None:
        _check_key(request)
        info = await self._store.head(request.ref, request.key)
        headers = _headers(request, info)
        if is_unmodified(request, info):
            await send_answer(send, request, Answer(status=304, headers=headers))
            return
        part = wanted_range(request, info.num_bytes)
        if part is not None:
            headers["content-range"] = part.header
        await send_answer(
            send,
            request,
            Answer(
                status=200 if part is None else 206,
                headers=headers,
                num_bytes=info.num_bytes if part is None else part.stop - part.start,
            ),
        )

    async def get(self, request: S3Request, send: Send) -> None:
        _check_key(request)
        async with self._store.open(request.ref, request.key) as found:
            if is_unmodified(request, found.info):
                headers = _headers(request, found.info)
                await send_answer(send, request, Answer(status=304, headers=headers))
                return
            await unless_client_leaves(request.receive, _send_object(request, send, found))

    async def delete(self, request: S3Request, send: Send) -> None:
        try:
            check_file_key(request.key)
        except ValidationError:
            pass  # no object can be called so: it is not there, which is what is asked for
        else:
            with audited(Act.OBJECT_DELETED, f"object {request.key} of bucket {request.ref.name}"):
                await self._store.delete(request.ref, request.key)
            await self._changed(request.ref)
        await send_answer(send, request, Answer(status=204))

    async def _num_bytes(self, request: S3Request) -> int:
        """Of the object that is there now; 0: there is none."""
        try:
            _check_key(request)
            return (await self._store.head(request.ref, request.key)).num_bytes
        except ObjectNotFoundError:
            return 0

    async def _copy(self, request: S3Request, send: Send) -> None:
        source, key = _copy_source(request)
        directive = request.headers.get("x-amz-metadata-directive", "COPY")
        async with self._store.open(source, key) as found:
            is_copied = directive == "COPY"
            num_bytes = found.info.num_bytes
            async with self._quota.upload(request.tenant, num_bytes=num_bytes) as upload:
                num_replaced = await self._num_bytes(request) if upload.is_limited else 0
                info = await self._store.put(
                    request.ref,
                    request.key,
                    upload.counted(found.chunks()),
                    headers=found.info.headers if is_copied else kept_headers(request.headers),
                    is_new=_is_to_be_new(request),
                )
                upload.stored(num_replaced=num_replaced)
        await self._changed(request.ref)
        facts = [("LastModified", xml_time(info.modified_at)), ("ETag", f'"{info.etag}"')]
        await send_answer(send, request, xml_answer("CopyObjectResult", facts))


async def _send_object(request: S3Request, send: Send, found: OpenObject) -> None:
    headers = _headers(request, found.info)
    part = wanted_range(request, found.info.num_bytes)
    start, stop = (0, found.info.num_bytes) if part is None else (part.start, part.stop)
    if part is not None:
        headers["content-range"] = part.header
    status = 200 if part is None else 206
    await send_start(send, request, status=status, headers=headers, num_bytes=stop - start)
    await send_chunks(send, found.read(start, stop))


def _headers(request: S3Request, info: ObjectInfo) -> dict[str, str]:
    overrides = {
        name.removeprefix(_OVERRIDE_PREFIX): value
        for name, value in request.query.items()
        if name.startswith(_OVERRIDE_PREFIX)
    }
    return {
        "content-type": DEFAULT_CONTENT_TYPE,
        **info.headers,
        **overrides,
        "etag": f'"{info.etag}"',
        "last-modified": http_time(info.modified_at),
        "accept-ranges": "bytes",
    }


def _check_key(request: S3Request) -> None:
    """
    Raises:
        ObjectNotFoundError: no object can be called so. Clients ask for `folder/`, for example.
    """
    try:
        check_file_key(request.key)
    except ValidationError:
        raise ObjectNotFoundError.of(request.ref, request.key) from None


def _is_to_be_new(request: S3Request) -> bool:
    if "if-match" in request.headers:
        raise not_implemented("If-Match of a put")
    condition = request.headers.get("if-none-match")
    if condition not in (None, "*"):
        raise not_implemented("If-None-Match of a put, but for *,")
    return condition is not None


def _copy_source(request: S3Request) -> tuple[BucketRef, str]:
    path, _, version = unquote(request.headers[COPY_SOURCE]).removeprefix("/").partition("?")
    bucket, _, key = path.partition("/")
    if version not in ("", "versionId=null"):
        raise not_implemented("A version of an object")
    if not bucket or not key:
        raise S3Error("InvalidArgument", f"{COPY_SOURCE} must be like bucket/key.")
    return BucketRef(request.tenant, bucket), key
