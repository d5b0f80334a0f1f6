"""A small S3-compatible API over a storage folder, for boto3, the AWS CLI and their like.

Path style: `<prefix>/{bucket}/{key}`. Authenticates by itself (see `authentication`), answers its
own errors as S3 does, and never blocks the loop: files are read and written on the store's threads.
"""

import logging
from dataclasses import replace

from starlette.types import Message, Receive, Scope, Send

from cluster.log_context import add_log_tags
from cluster.object_store import S3_FACE_PATH
from cluster.storage.folder_store import FolderStore
from cluster.storage.folder_uploads import FolderUploads
from cluster.tenants.key_directory import KeyDirectory
from cluster.tenants.storage_quota import StorageQuota
from cluster.types import BucketRef
from deployments.ingress.errors import ClientLeftError
from deployments.ingress.exchange import SCOPE_KEY
from deployments.ingress.request_body import linger
from deployments.ingress.s3.answers import error_answer, send_answer
from deployments.ingress.s3.authentication import authenticate
from deployments.ingress.s3.buckets import BucketOperations
from deployments.ingress.s3.errors import S3Error, as_s3_error
from deployments.ingress.s3.objects import ObjectOperations
from deployments.ingress.s3.request import S3Request, parse_request
from deployments.ingress.s3.routes import ChangeListener, Level, Route, Routes, find_route
from deployments.ingress.s3.uploads import UploadOperations

logger = logging.getLogger(__name__)

DEFAULT_MAX_OBJECT_BYTES = 5 * 2**30  # as much as S3 takes in one PUT

# The query names that operations read.
_LISTING = frozenset(
    {
        "continuation-token",
        "delimiter",
        "encoding-type",
        "fetch-owner",
        "list-type",
        "marker",
        "max-keys",
        "prefix",
        "start-after",
    }
)
_UPLOADS = frozenset({"encoding-type", "key-marker", "max-uploads", "prefix", "upload-id-marker"})
_PART = frozenset({"partNumber"})
_PARTS = frozenset({"max-parts", "part-number-marker"})
_OVERRIDES = frozenset(
    f"response-{name}"
    for name in (
        "cache-control",
        "content-disposition",
        "content-encoding",
        "content-language",
        "content-type",
        "expires",
    )
)


class S3Face:
    """The ASGI app."""

    def __init__(
        self,
        store: FolderStore,
        keys: KeyDirectory,
        *,
        on_change: ChangeListener,
        max_object_bytes: int = DEFAULT_MAX_OBJECT_BYTES,
        quota: StorageQuota | None = None,
        prefix: str = S3_FACE_PATH,
    ) -> None:
        """
        Args:
            on_change: is called after each put and delete; its errors are logged, not answered.
            quota: of tenants; None: they have none.
            prefix: the path of the face, without a trailing slash.
        """
        self._keys = keys
        self._prefix = prefix
        self._on_change = on_change
        self._quota = StorageQuota.unlimited() if quota is None else quota
        self._routes = self._operations(store, max_object_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == "http"
        body = _WatchedBody(scope, receive)
        has_started = False

        async def watched_send(message: Message) -> None:
            nonlocal has_started
            has_started = True
            await send(message)

        request = S3Request.unparsed(scope, body)
        if (exchange := scope.get(SCOPE_KEY)) is not None:
            exchange.route = self._prefix
        try:
            request = parse_request(scope, body, prefix=self._prefix)
            key = await authenticate(request, self._keys)
            request = replace(request, tenant=key.tenant)
            add_log_tags(tenant=key.tenant, key_id=key.key_id)
            if exchange is not None:
                exchange.key = key
            route = find_route(self._routes, request)
            if request.method == "DELETE" or "delete" in request.query:
                await self._quota.note_deleted(request.tenant)
            await route.handler(request, watched_send)
        except ClientLeftError:
            raise  # nobody is there; the boundary counts it
        except Exception as error:
            if has_started:
                raise  # half an answer is out: only closing the connection is left
            await _send_error(as_s3_error(error), request, body, send)

    async def _changed(self, ref: BucketRef) -> None:
        try:
            await self._on_change(ref)
        except Exception:
            # The object is stored whatever becomes of the listener, and the client must hear so.
            logger.exception("the bucket %s changed, and who wanted to know failed", ref.name)

    def _operations(self, store: FolderStore, max_object_bytes: int) -> Routes:
        buckets = BucketOperations(store, self._changed)
        quota = self._quota
        objects = ObjectOperations(
            store, self._changed, max_object_bytes=max_object_bytes, quota=quota
        )
        uploads = UploadOperations(
            FolderUploads(store), self._changed, max_object_bytes=max_object_bytes, quota=quota
        )
        return {
            (Level.SERVICE, "GET", ""): Route(handler=buckets.list_buckets),
            (Level.BUCKET, "GET", ""): Route(handler=buckets.list_objects, query=_LISTING),
            (Level.BUCKET, "GET", "location"): Route(handler=buckets.location),
            (Level.BUCKET, "GET", "versioning"): Route(handler=buckets.versioning),
            (Level.BUCKET, "GET", "uploads"): Route(handler=uploads.list_uploads, query=_UPLOADS),
            (Level.BUCKET, "HEAD", ""): Route(handler=buckets.head),
            (Level.BUCKET, "PUT", ""): Route(handler=buckets.create),
            (Level.BUCKET, "DELETE", ""): Route(handler=buckets.delete),
            (Level.BUCKET, "POST", "delete"): Route(handler=buckets.delete_objects),
            (Level.OBJECT, "GET", ""): Route(handler=objects.get, query=_OVERRIDES),
            (Level.OBJECT, "HEAD", ""): Route(handler=objects.head, query=_OVERRIDES),
            (Level.OBJECT, "PUT", ""): Route(handler=objects.put),
            (Level.OBJECT, "DELETE", ""): Route(handler=objects.delete),
            (Level.OBJECT, "POST", "uploads"): Route(handler=uploads.create),
            (Level.OBJECT, "GET", "uploadId"): Route(handler=uploads.list_parts, query=_PARTS),
            (Level.OBJECT, "PUT", "uploadId"): Route(handler=uploads.put_part, query=_PART),
            (Level.OBJECT, "POST", "uploadId"): Route(handler=uploads.complete),
            (Level.OBJECT, "DELETE", "uploadId"): Route(handler=uploads.abort),
        }


class _WatchedBody:
    """A request's `receive` that knows whether the client may still be sending."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
        self.is_complete = not has_body
        self._receive = receive

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] != "http.request" or not message.get("more_body", False):
            self.is_complete = True
        return message


async def _send_error(error: S3Error, request: S3Request, body: _WatchedBody, send: Send) -> None:
    answer = error_answer(error, request)
    if body.is_complete:
        await send_answer(send, request, answer)
        return
    await send_answer(send, request, replace(answer, closes=True))
    await linger(body)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
