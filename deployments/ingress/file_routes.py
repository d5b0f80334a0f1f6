"""OpenAI's `/files`: upload, list, look, read, delete."""

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import quote

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.audit import Act, audited
from cluster.errors import FieldProblem, ServingError, ValidationError
from cluster.file_store import FileStore, StoredFile, WrittenBytes
from cluster.openai_schema.files import (
    BATCH_PURPOSE,
    MAX_EXPIRY_S,
    MAX_LISTED_FILES,
    MIN_EXPIRY_S,
    OUTPUT_PURPOSE,
    UPLOAD_PURPOSES,
    FileDeleted,
    FileList,
    FileObject,
)
from cluster.openai_schema.values import shown
from cluster.storage.stored_object import OpenObject
from cluster.tenants.storage_quota import StorageQuota
from deployments.ingress import operations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.multipart import MultipartBody, Part
from deployments.ingress.operation import Operation
from deployments.ingress.query_parameters import read_choice, read_integer
from deployments.ingress.responses import unless_client_leaves

FILES_ROUTE = "/v1/files"
FILE_ROUTE = "/v1/files/{file_id}"
CONTENT_ROUTE = "/v1/files/{file_id}/content"
_FORM_BYTES = 16_384  # of a form around its file
_MAX_FILENAME_CHARS = 255
_ANCHOR, _SECONDS = "expires_after[anchor]", "expires_after[seconds]"
_FIELDS = ("file", "purpose", _ANCHOR, _SECONDS)


def file_endpoints(
    files: FileStore, *, batch_retention_s: float, quota: StorageQuota | None = None
) -> dict[Operation, ASGIApp]:
    """What serves the operations about files.

    Args:
        batch_retention_s: of files for batches, where the client does not say.
        quota: of tenants; None: they have none.
    """
    quota = StorageQuota.unlimited() if quota is None else quota
    return {
        operations.UPLOAD_FILE: UploadFile(files, quota, batch_retention_s=batch_retention_s),
        operations.FILES: ListFiles(files),
        operations.FILE_CONTENT: FileContent(files),
        operations.ONE_FILE: OneFile(files),
        operations.DELETE_FILE: DeleteFile(files, quota),
    }


@dataclass(slots=True)
class _Form:
    """What of an upload has come so far."""

    written: WrittenBytes | None = None
    filename: str = ""
    purpose: str = ""
    anchor: str = ""
    seconds: str = ""


class UploadFile:
    """`POST /files`, an ASGI app. The file goes to the storage as it comes."""

    def __init__(self, files: FileStore, quota: StorageQuota, *, batch_retention_s: float) -> None:
        self._files = files
        self._quota = quota
        self._batch_retention_s = batch_retention_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = FILES_ROUTE
        max_bytes = self._files.max_bytes + _FORM_BYTES
        body = MultipartBody(scope, receive, max_bytes=max_bytes)
        form = _Form()
        try:
            async for part in body.parts():
                await self._take(exchange.tenant, part, form)
            written, expires_after_s = self._checked(form)
        except BaseException:  # also when the client leaves: half an upload is none
            if form.written is not None:
                await self._files.discard(exchange.tenant, form.written)
                await self._quota.note_deleted(exchange.tenant)
            raise
        stored = await self._files.add(
            exchange.tenant,
            written,
            filename=form.filename,
            purpose=form.purpose,
            expires_after_s=expires_after_s,
        )
        await send_json(send, file_object(stored).model_dump_json().encode())

    async def _take(self, tenant: str, part: Part, form: _Form) -> None:
        if part.name == "file":
            if part.filename is None or form.written is not None:
                raise _problem("file", "must be one file, with a name")
            form.filename = part.filename[:_MAX_FILENAME_CHARS]
            async with self._quota.upload(tenant, num_bytes=None) as upload:
                form.written = await self._files.write(tenant, upload.counted(part.content))
                upload.stored()
        elif part.name == "purpose":
            form.purpose = await part.text()
            self._check_purpose(form.purpose)
        elif part.name == _ANCHOR:
            form.anchor = await part.text()
        elif part.name == _SECONDS:
            form.seconds = await part.text()
        else:
            message = f"is not a field of an upload; those are {', '.join(_FIELDS)}"
            raise _problem(part.name[:100], message, kind="extra_forbidden")

    def _check_purpose(self, purpose: str) -> None:
        if purpose not in UPLOAD_PURPOSES:
            allowed = " or ".join(map(repr, UPLOAD_PURPOSES))
            raise _problem("purpose", f"must be {allowed}; given {shown(purpose)}")

    def _checked(self, form: _Form) -> tuple[WrittenBytes, float | None]:
        """The bytes, and how long they are kept."""
        if form.written is None:
            raise _problem("file", "is required", kind="missing")
        if not form.purpose:
            raise _problem("purpose", "is required", kind="missing")
        expires_after_s = _expiry_s(form)
        if expires_after_s is None and form.purpose == BATCH_PURPOSE:
            return form.written, self._batch_retention_s
        return form.written, expires_after_s


class ListFiles:
    """`GET /files`, an ASGI app. The newest first, where nothing else is asked for."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = FILES_ROUTE
        limit = read_integer(scope, "limit", default=MAX_LISTED_FILES, low=1, high=MAX_LISTED_FILES)
        order = read_choice(scope, "order", ("asc", "desc"), default="desc")
        purposes = (*UPLOAD_PURPOSES, OUTPUT_PURPOSE)
        page = await self._files.find(
            exchange.tenant,
            purpose=read_choice(scope, "purpose", purposes, default=""),
            after=Request(scope).query_params.get("after", ""),
            limit=limit,
            is_descending=order == "desc",
        )
        objects = [file_object(file) for file in page.files]
        answer = FileList(
            data=objects,
            first_id=objects[0].id if objects else None,
            last_id=objects[-1].id if objects else None,
            has_more=page.has_more,
        )
        await send_json(send, answer.model_dump_json().encode())


class OneFile:
    """`GET /files/{file_id}`, an ASGI app."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = FILE_ROUTE
        file = await self._files.get(exchange.tenant, _file_id(scope))
        await send_json(send, file_object(file).model_dump_json().encode())


class DeleteFile:
    """`DELETE /files/{file_id}`, an ASGI app."""

    def __init__(self, files: FileStore, quota: StorageQuota) -> None:
        self._files = files
        self._quota = quota

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = FILE_ROUTE
        file_id = _file_id(scope)
        with audited(Act.FILE_DELETED, f"file {file_id}"):
            await self._files.delete(exchange.tenant, file_id)
        await self._quota.note_deleted(exchange.tenant)
        await send_json(send, FileDeleted(id=file_id).model_dump_json().encode())


class FileContent:
    """`GET /files/{file_id}/content`, an ASGI app: the bytes, streamed."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = CONTENT_ROUTE
        file = await self._files.get(exchange.tenant, _file_id(scope))
        async with self._files.open(exchange.tenant, file.file_id) as opened:
            await unless_client_leaves(receive, _send_content(send, file, opened))


async def _send_content(send: Send, file: StoredFile, opened: OpenObject) -> None:
    disposition = f"attachment; filename*=UTF-8''{quote(file.filename)}"
    headers = [
        (b"content-type", b"application/octet-stream"),
        (b"content-length", str(opened.info.num_bytes).encode()),
        (b"content-disposition", disposition.encode()),
    ]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    chunks: AsyncIterator[bytes] = opened.chunks()
    async for data in chunks:
        await send({"type": "http.response.body", "body": data, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def file_object(file: StoredFile) -> FileObject:
    return FileObject(
        id=file.file_id,
        bytes=file.num_bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
    )


def _expiry_s(form: _Form) -> int | None:
    if not form.anchor and not form.seconds:
        return None
    if form.anchor != "created_at":
        raise _problem(_ANCHOR, f"must be 'created_at'; given {shown(form.anchor)}")
    is_number = re.fullmatch("[0-9]{1,9}", form.seconds) is not None
    if not is_number or not MIN_EXPIRY_S <= int(form.seconds) <= MAX_EXPIRY_S:
        message = f"must be an integer in [{MIN_EXPIRY_S}, {MAX_EXPIRY_S}]"
        raise _problem(_SECONDS, f"{message}; given {shown(form.seconds)}")
    return int(form.seconds)


def _file_id(scope: Scope) -> str:
    return str(Request(scope).path_params["file_id"])


def _problem(field: str, message: str, *, kind: str = "value_error") -> ServingError:
    return ValidationError([FieldProblem(loc=(field,), message=message, kind=kind)])
