"""Multipart uploads: begin, put parts, list, complete, abort."""

from starlette.types import Send

from cluster.storage.folder_uploads import MAX_PARTS, FolderUploads, UploadRef
from cluster.storage.xml_document import children, tag_of, text_of
from cluster.tenants.storage_quota import StorageQuota
from deployments.ingress.s3.answers import XML, Answer, send_answer, xml_answer, xml_time
from deployments.ingress.s3.buckets import MAX_DOCUMENT_BYTES, parse_document
from deployments.ingress.s3.errors import S3Error, not_implemented
from deployments.ingress.s3.listings import encoding, number_in
from deployments.ingress.s3.objects import COPY_SOURCE
from deployments.ingress.s3.payload import Payload, read_document
from deployments.ingress.s3.request import S3Request
from deployments.ingress.s3.routes import ChangeListener
from deployments.ingress.s3.stored_headers import check_headers, kept_headers

MAX_LISTED = 1000


class UploadOperations:
    """See the module."""

    def __init__(
        self,
        uploads: FolderUploads,
        changed: ChangeListener,
        *,
        max_object_bytes: int,
        quota: StorageQuota,
    ) -> None:
        self._uploads = uploads
        self._quota = quota
        self._changed = changed
        self._max_object_bytes = max_object_bytes

    async def create(self, request: S3Request, send: Send) -> None:
        check_headers(request.headers)
        headers = kept_headers(request.headers)
        ref = await self._uploads.begin(request.ref, request.key, headers=headers)
        content = [("Bucket", request.bucket), ("Key", request.key), ("UploadId", ref.upload_id)]
        await send_answer(send, request, xml_answer("InitiateMultipartUploadResult", content))

    async def put_part(self, request: S3Request, send: Send) -> None:
        if COPY_SOURCE in request.headers:
            raise not_implemented("UploadPartCopy")
        check_headers(request.headers)
        number = _part_number(request.query.get("partNumber", ""))
        payload = Payload(request, max_bytes=self._max_object_bytes)
        async with self._quota.upload(request.tenant, num_bytes=payload.num_expected) as upload:
            content = upload.counted(payload)
            part = await self._uploads.put_part(_upload_ref(request), number, content)
            upload.stored()
        headers = {"etag": f'"{part.etag}"', **payload.verified}
        await send_answer(send, request, Answer(headers=headers))

    async def complete(self, request: S3Request, send: Send) -> None:
        if "if-match" in request.headers or "if-none-match" in request.headers:
            raise not_implemented("A condition on completing an upload")
        document = await read_document(request, max_bytes=MAX_DOCUMENT_BYTES)
        chosen = await _chosen_parts(document)
        info = await self._uploads.complete(
            _upload_ref(request), chosen, max_bytes=self._max_object_bytes
        )
        await self._changed(request.ref)
        content = [
            ("Location", request.path),
            ("Bucket", request.bucket),
            ("Key", request.key),
            ("ETag", f'"{info.etag}"'),
        ]
        await send_answer(send, request, xml_answer("CompleteMultipartUploadResult", content))

    async def abort(self, request: S3Request, send: Send) -> None:
        await self._uploads.abort(_upload_ref(request))
        await send_answer(send, request, Answer(status=204))

    async def list_parts(self, request: S3Request, send: Send) -> None:
        maximum = number_in(request.query, "max-parts", default=MAX_LISTED, maximum=MAX_LISTED)
        after = number_in(request.query, "part-number-marker", default=0, maximum=MAX_PARTS)
        ref = _upload_ref(request)
        behind = [part for part in await self._uploads.parts(ref) if part.number > after]
        listed = behind[:maximum]
        content: list[tuple[str, XML]] = [
            ("Bucket", request.bucket),
            ("Key", request.key),
            ("UploadId", ref.upload_id),
            ("StorageClass", "STANDARD"),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", listed[-1].number if listed else after),
            ("MaxParts", maximum),
            ("IsTruncated", "true" if len(behind) > maximum else "false"),
        ]
        for part in listed:
            facts: list[tuple[str, XML]] = [
                ("PartNumber", part.number),
                ("LastModified", xml_time(part.modified_at)),
                ("ETag", f'"{part.etag}"'),
                ("Size", part.num_bytes),
            ]
            content.append(("Part", facts))
        await send_answer(send, request, xml_answer("ListPartsResult", content))

    async def list_uploads(self, request: S3Request, send: Send) -> None:
        query = request.query
        prefix, encode = query.get("prefix", ""), encoding(query)
        maximum = number_in(query, "max-uploads", default=MAX_LISTED, maximum=MAX_LISTED)
        after = (query.get("key-marker", ""), query.get("upload-id-marker", ""))
        found = sorted(
            (upload.key, upload.upload_id, upload.started_at)
            for upload in await self._uploads.uploads(request.ref)
            if upload.key.startswith(prefix)
        )
        # Without an upload id the marker is behind all uploads of its key.
        behind = [
            item for item in found if (item[0] > after[0] if not after[1] else item[:2] > after)
        ]
        listed = behind[:maximum]
        content: list[tuple[str, XML]] = [
            ("Bucket", request.bucket),
            ("Prefix", encode(prefix)),
            ("KeyMarker", encode(after[0])),
            ("UploadIdMarker", after[1]),
            ("MaxUploads", maximum),
            ("IsTruncated", "true" if len(behind) > maximum else "false"),
        ]
        if listed:
            content += [
                ("NextKeyMarker", encode(listed[-1][0])),
                ("NextUploadIdMarker", listed[-1][1]),
            ]
        for key, upload_id, started_at in listed:
            facts = [
                ("Key", encode(key)),
                ("UploadId", upload_id),
                ("Initiated", xml_time(started_at)),
            ]
            content.append(("Upload", [*facts, ("StorageClass", "STANDARD")]))
        await send_answer(send, request, xml_answer("ListMultipartUploadsResult", content))


def _upload_ref(request: S3Request) -> UploadRef:
    return UploadRef(bucket=request.ref, key=request.key, upload_id=request.query["uploadId"])


def _part_number(text: str) -> int:
    number = int(text) if text.isascii() and text.isdigit() and len(text) <= 5 else 0
    if not 1 <= number <= MAX_PARTS:
        raise S3Error(
            "InvalidArgument", f"partNumber must be from 1 to {MAX_PARTS}; given {text[:20]!r}."
        )
    return number


async def _chosen_parts(document: bytes) -> list[tuple[int, str]]:
    root = await parse_document(document)
    parts = list(children(root, "Part"))
    if tag_of(root) != "CompleteMultipartUpload" or not parts or len(parts) > MAX_PARTS:
        raise S3Error("MalformedXML", "A CompleteMultipartUpload with its parts is expected.")
    return [
        (_part_number(text_of(part, "PartNumber") or ""), (text_of(part, "ETag") or "").strip('"'))
        for part in parts
    ]
