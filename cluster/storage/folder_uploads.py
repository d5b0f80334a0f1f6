"""Multipart uploads into a storage folder: parts wait as files until they are put together.

    <tenant>/.shoal/uploads/<bucket>/<upload id>/upload.json     JSON of `_Upload`
    <tenant>/.shoal/uploads/<bucket>/<upload id>/00001.<md5>     a part

An upload that gets no part for a week is swept away when a store is opened.
"""

import hashlib
import re
import secrets
import shutil
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from cluster.storage.errors import (
    InvalidPartError,
    InvalidPartOrderError,
    ObjectNotFoundError,
    ObjectTooLargeError,
    TooManyUploadsError,
    UploadNotFoundError,
)
from cluster.storage.folder_files import StagedFile, storage_errors
from cluster.storage.folder_store import NO_HEADERS, FolderStore
from cluster.storage.stored_object import ObjectInfo
from cluster.types import BucketRef

MAX_PARTS = 10_000
MAX_UPLOADS = 1_000  # of a tenant, in all its buckets: each is a folder, whatever is in it
_FACTS_NAME = "upload.json"
_UPLOAD_ID = re.compile(r"[0-9a-f]{32}")
_PART_NAME = re.compile(r"(\d{5})\.([0-9a-f]{32})")


@dataclass(frozen=True, slots=True, kw_only=True)
class PartInfo:
    """A part that has arrived."""

    number: int  # from 1
    etag: str  # its MD5
    num_bytes: int
    modified_at: float  # unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadInfo:
    """A multipart upload that is neither completed nor aborted."""

    upload_id: str
    key: str
    started_at: float  # unix seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRef:
    """A multipart upload as a client names it."""

    bucket: BucketRef
    key: str
    upload_id: str


class _Upload(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    headers: dict[str, str]


class FolderUploads:
    """The multipart uploads of one store."""

    def __init__(self, store: FolderStore) -> None:
        self._store = store

    async def begin(
        self, bucket: BucketRef, key: str, *, headers: Mapping[str, str] = NO_HEADERS
    ) -> UploadRef:
        """
        Raises:
            ValidationError: no object can be called so.
            BucketNotFoundError: there is none.
            TooManyUploadsError: the tenant has not ended enough of its others.
        """
        ref = UploadRef(bucket=bucket, key=key, upload_id=secrets.token_hex(16))

        def work() -> None:
            self._store.layout.object(bucket, key)
            folder = self._store.layout.uploads_folder(bucket) / ref.upload_id
            _refuse_too_many(folder.parent.parent)
            with storage_errors():
                folder.mkdir(parents=True)
                facts = msgspec.json.encode(_Upload(key=key, headers=dict(headers)))
                (folder / _FACTS_NAME).write_bytes(facts)

        await self._store.run(work)
        return ref

    async def put_part(
        self, ref: UploadRef, number: int, content: AsyncIterable[bytes]
    ) -> PartInfo:
        """Keep a part; another one of the same number is forgotten.

        Raises:
            UploadNotFoundError: there is no such upload, or not any more.
            StorageFullError: there is no room.
        """
        folder = await self._store.run(partial(self._folder, ref))
        async with self._store.staged(ref.bucket) as staged:
            await self._store.write(staged, content)
            return await self._store.run(partial(_keep_part, ref, folder, number, staged))

    async def parts(self, ref: UploadRef) -> list[PartInfo]:
        """By number.

        Raises:
            UploadNotFoundError: there is no such upload.
        """
        return await self._store.run(lambda: _parts(self._folder(ref)))

    async def uploads(self, bucket: BucketRef) -> list[UploadInfo]:
        """By key, then by age.

        Raises:
            BucketNotFoundError: there is none.
        """

        def work() -> list[UploadInfo]:
            self._store.layout.bucket(bucket)
            return _uploads(self._store.layout.uploads_folder(bucket))

        return await self._store.run(work)

    async def complete(
        self, ref: UploadRef, chosen: Sequence[tuple[int, str]], *, max_bytes: int
    ) -> ObjectInfo:
        """Put the chosen parts, (number, etag) each, together as the object.

        A client that has not heard of its success and asks again is answered the same.

        Raises:
            UploadNotFoundError: there is no such upload.
            InvalidPartOrderError, InvalidPartError, ObjectTooLargeError: about the parts.
            StorageFullError: there is no room.
        """
        etag = _etag_of_parts(chosen)
        try:
            folder = await self._store.run(partial(self._folder, ref))
        except UploadNotFoundError as error:
            try:
                info = await self._store.head(ref.bucket, ref.key)
            except ObjectNotFoundError:
                raise error from None
            if info.etag != etag:
                raise
            return info
        return await self._store.run(lambda: self._complete(ref, folder, chosen, etag, max_bytes))

    async def abort(self, ref: UploadRef) -> None:
        """Forget an upload and its parts.

        Raises:
            UploadNotFoundError: there is no such upload.
        """
        await self._store.run(lambda: _remove(self._folder(ref)))

    def _folder(self, ref: UploadRef) -> Path:
        self._store.layout.bucket(ref.bucket)
        folder = self._store.layout.uploads_folder(ref.bucket) / ref.upload_id
        is_one = _UPLOAD_ID.fullmatch(ref.upload_id) is not None and folder.is_dir()
        try:
            if is_one and _facts(folder).key == ref.key:
                return folder
        except FileNotFoundError:
            pass  # completed or aborted at this moment
        raise UploadNotFoundError.of(ref.upload_id)

    def _complete(
        self,
        ref: UploadRef,
        folder: Path,
        chosen: Sequence[tuple[int, str]],
        etag: str,
        max_bytes: int,
    ) -> ObjectInfo:
        parts = {(part.number, part.etag): part for part in _parts(folder)}
        for number, part_etag in chosen:
            if (number, part_etag) not in parts:
                raise InvalidPartError(f"Part {number} with the ETag {part_etag!r} is not there.")
        num_bytes = sum(parts[part].num_bytes for part in chosen)
        if num_bytes > max_bytes:
            raise ObjectTooLargeError(
                f"The parts have {num_bytes} bytes together; the limit is {max_bytes}."
            )
        staged = StagedFile(self._store.layout.staged_folder(ref.bucket.tenant))
        try:
            try:
                headers = _facts(folder).headers
                for number, part_etag in chosen:
                    staged.append_file(folder / _part_name(number, part_etag))
            except FileNotFoundError:  # somebody else completed or aborted it
                raise UploadNotFoundError.of(ref.upload_id) from None
            info = self._store.layout.place(staged, ref.bucket, ref.key, etag=etag, headers=headers)
        finally:
            staged.discard()
        _remove(folder)
        return info


def _refuse_too_many(folder: Path) -> None:
    """`folder`: of a tenant's uploads. Those that begin at the same moment may be some more."""
    num_uploads = sum(1 for _ in folder.glob("*/*"))
    if num_uploads >= MAX_UPLOADS:
        raise TooManyUploadsError(
            f"{num_uploads} multipart uploads are not ended; a tenant may have {MAX_UPLOADS}: "
            "complete or abort some (ListMultipartUploads lists a bucket's)."
        )


def _etag_of_parts(chosen: Sequence[tuple[int, str]]) -> str:
    """S3's ETag of an object from parts: the MD5 of their MD5s, and how many they were."""
    numbers = [number for number, _ in chosen]
    if numbers != sorted(set(numbers)):
        raise InvalidPartOrderError("The parts are not in ascending order.")
    try:
        digests = b"".join(bytes.fromhex(etag) for _, etag in chosen)
    except ValueError:
        raise InvalidPartError("A part's ETag is not one of a part.") from None
    return f"{hashlib.md5(digests, usedforsecurity=False).hexdigest()}-{len(chosen)}"


def _part_name(number: int, etag: str) -> str:
    return f"{number:05}.{etag}"


def _keep_part(ref: UploadRef, folder: Path, number: int, staged: StagedFile) -> PartInfo:
    name = _part_name(number, staged.md5)
    try:
        info = staged.publish(folder / name, name, etag=staged.md5, headers=NO_HEADERS)
    except FileNotFoundError:
        raise UploadNotFoundError.of(ref.upload_id) from None
    for older in folder.glob(f"{number:05}.*"):
        if older.name != name:
            older.unlink(missing_ok=True)
    return PartInfo(
        number=number, etag=info.etag, num_bytes=info.num_bytes, modified_at=info.modified_at
    )


def _parts(folder: Path) -> list[PartInfo]:
    parts = []
    for path in sorted(folder.iterdir()):
        match = _PART_NAME.fullmatch(path.name)
        if match is not None:
            status = path.stat()
            parts.append(
                PartInfo(
                    number=int(match[1]),
                    etag=match[2],
                    num_bytes=status.st_size,
                    modified_at=status.st_mtime,
                )
            )
    return parts


def _uploads(folder: Path) -> list[UploadInfo]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        try:
            started_at = (path / _FACTS_NAME).stat().st_mtime
            key = _facts(path).key
        except (FileNotFoundError, msgspec.DecodeError):
            continue  # about to begin, or completed or aborted meanwhile
        found.append(UploadInfo(upload_id=path.name, key=key, started_at=started_at))
    return sorted(found, key=lambda upload: (upload.key.encode(), upload.started_at))


def _facts(folder: Path) -> _Upload:
    return msgspec.json.decode((folder / _FACTS_NAME).read_bytes(), type=_Upload)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
