"""Operations on buckets: list, create, look, delete, and delete many objects at once."""

import asyncio
from xml.etree.ElementTree import Element

from starlette.types import Send

from cluster.audit import Act, audited
from cluster.errors import ServingError
from cluster.storage.errors import BucketNotFoundError
from cluster.storage.folder_store import FolderStore
from cluster.storage.xml_document import XMLError, children, parse_xml, tag_of, text_of
from deployments.ingress.s3.answers import XML, Answer, send_answer, xml_answer, xml_time
from deployments.ingress.s3.errors import S3Error, as_s3_error
from deployments.ingress.s3.listings import list_query, listing
from deployments.ingress.s3.payload import read_document
from deployments.ingress.s3.request import S3Request
from deployments.ingress.s3.routes import ChangeListener
from deployments.ingress.s3.stored_headers import check_headers

MAX_DOCUMENT_BYTES = 2**20
MAX_DELETES = 1000
REGION = "us-east-1"  # the one whose name S3 leaves out
_MAX_INLINE_BYTES = 16 * 1024  # of a document that is parsed on the event loop


class BucketOperations:
    """See the module."""

    def __init__(self, store: FolderStore, changed: ChangeListener) -> None:
        self._store = store
        self._changed = changed

    async def list_buckets(self, request: S3Request, send: Send) -> None:
        buckets = await self._store.list_buckets(request.tenant)
        owner = [("ID", request.tenant), ("DisplayName", request.tenant)]
        entries = [
            ("Bucket", [("Name", bucket.name), ("CreationDate", xml_time(bucket.modified_at))])
            for bucket in buckets
        ]
        content: list[tuple[str, XML]] = [("Owner", owner), ("Buckets", entries)]
        await send_answer(send, request, xml_answer("ListAllMyBucketsResult", content))

    async def create(self, request: S3Request, send: Send) -> None:
        check_headers(request.headers)
        if request.headers.get("x-amz-bucket-object-lock-enabled", "false").lower() != "false":
            raise S3Error("NotImplemented", "Object lock is not implemented here.")
        document = await read_document(request, max_bytes=MAX_DOCUMENT_BYTES)
        if document:
            await parse_document(document)  # a region; there is only one
        await self._store.create_bucket(request.ref)
        await send_answer(send, request, Answer(headers={"location": f"/{request.bucket}"}))

    async def head(self, request: S3Request, send: Send) -> None:
        await self._check(request)
        await send_answer(send, request, Answer(headers={"x-amz-bucket-region": REGION}))

    async def location(self, request: S3Request, send: Send) -> None:
        await self._check(request)
        await send_answer(send, request, xml_answer("LocationConstraint", ""))

    async def versioning(self, request: S3Request, send: Send) -> None:
        """Never on. Clients ask before they delete."""
        await self._check(request)
        await send_answer(send, request, xml_answer("VersioningConfiguration", ""))

    async def delete(self, request: S3Request, send: Send) -> None:
        with audited(Act.BUCKET_DELETED, f"bucket {request.ref.name}"):
            await self._store.delete_bucket(request.ref)
        await self._changed(request.ref)
        await send_answer(send, request, Answer(status=204))

    async def list_objects(self, request: S3Request, send: Send) -> None:
        query = list_query(request)
        page = await self._store.list_page(
            request.ref,
            prefix=query.prefix,
            delimiter=query.delimiter,
            after=query.after,
            max_keys=query.max_keys,
        )
        await send_answer(send, request, listing(request, query, page))

    async def delete_objects(self, request: S3Request, send: Send) -> None:
        document = await read_document(request, max_bytes=MAX_DOCUMENT_BYTES)
        root = await parse_document(document)
        keys = [text_of(item, "Key") or "" for item in children(root, "Object")]
        if tag_of(root) != "Delete" or not 0 < len(keys) <= MAX_DELETES:
            raise S3Error(
                "MalformedXML", f"A Delete document with 1 to {MAX_DELETES} objects is expected."
            )
        await self._check(request)
        results = await asyncio.gather(*(self._delete_one(request, key) for key in keys))
        await self._changed(request.ref)
        if (text_of(root, "Quiet") or "").lower() == "true":
            results = [result for result in results if result[0] == "Error"]
        await send_answer(send, request, xml_answer("DeleteResult", results))

    async def _delete_one(self, request: S3Request, key: str) -> tuple[str, XML]:
        try:
            with audited(Act.OBJECT_DELETED, f"object {key} of bucket {request.ref.name}"):
                await self._store.delete(request.ref, key)
        except ServingError as error:
            problem = as_s3_error(error)
            said = [("Key", key), ("Code", problem.code), ("Message", problem.message)]
            return ("Error", said)
        return ("Deleted", [("Key", key)])

    async def _check(self, request: S3Request) -> None:
        if not await self._store.bucket_exists(request.ref):
            raise BucketNotFoundError.of(request.ref)


async def parse_document(document: bytes) -> Element:
    """Beside the event loop where it is long.

    Raises:
        S3Error: MalformedXML.
    """
    try:
        if len(document) <= _MAX_INLINE_BYTES:
            return parse_xml(document)
        return await asyncio.to_thread(parse_xml, document)
    except XMLError as error:
        raise S3Error("MalformedXML", f"The body is {error}.") from None
