"""Where the buckets of a storage folder are, and what a path in it may be. Everything blocks."""

import contextlib
import errno
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from cluster.errors import ValidationError
from cluster.storage.errors import (
    BucketExistsError,
    BucketNotEmptyError,
    BucketNotFoundError,
    ObjectExistsError,
    ObjectNotFoundError,
)
from cluster.storage.folder_files import StagedFile, storage_errors, sync_folder
from cluster.storage.names import bucket_problem, check_bucket_name, check_file_key
from cluster.storage.stored_object import BucketInfo, ObjectInfo
from cluster.types import BucketRef

PRIVATE_FOLDER = ".shoal"  # beside the buckets of a tenant; no bucket can be called so
STALE_FILE_S = 24 * 3600.0  # a file that is being written
STALE_UPLOAD_S = 7 * 24 * 3600.0  # a multipart upload, by its last part
_NUM_PLACE_ATTEMPTS = 5  # deletes prune empty folders, maybe the one that was just made


class FolderLayout:
    """The paths below one root."""

    def __init__(self, root: Path) -> None:
        with storage_errors():
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root = root.resolve()

    def sweep(self) -> None:
        """Remove what nobody has written to for so long that nobody will come back to it."""
        now = time.time()
        with contextlib.suppress(OSError):  # another process sweeps too
            for path in self.root.glob(f"*/{PRIVATE_FOLDER}/staged/*"):
                if path.lstat().st_mtime < now - STALE_FILE_S:
                    path.unlink()
            for path in self.root.glob(f"*/{PRIVATE_FOLDER}/uploads/*/*"):
                if path.lstat().st_mtime < now - STALE_UPLOAD_S:
                    shutil.rmtree(path)

    def private_folder(self, tenant: str) -> Path:
        return self.root / tenant / PRIVATE_FOLDER

    def staged_folder(self, tenant: str) -> Path:
        return self.private_folder(tenant) / "staged"

    def uploads_folder(self, ref: BucketRef) -> Path:
        return self.private_folder(ref.tenant) / "uploads" / ref.name

    def buckets(self, tenant: str) -> list[BucketInfo]:
        """Every folder whose name a bucket may have; links are none."""
        try:
            with os.scandir(self.root / tenant) as entries:
                folders = [
                    BucketInfo(name=entry.name, modified_at=entry.stat().st_mtime)
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) and bucket_problem(entry.name) is None
                ]
        except FileNotFoundError:
            return []
        return sorted(folders, key=lambda bucket: bucket.name)

    def stored_bytes(self, tenant: str) -> int:
        """Of all files of a tenant, parts of multipart uploads among them; links are none."""
        num_bytes, staged = 0, str(self.staged_folder(tenant))
        for folder, folders, names in os.walk(self.root / tenant):
            folders[:] = [name for name in folders if os.path.join(folder, name) != staged]
            for name in names:
                with contextlib.suppress(FileNotFoundError):  # deleted at this moment
                    num_bytes += os.lstat(os.path.join(folder, name)).st_size
        return num_bytes

    def has_bucket(self, ref: BucketRef) -> bool:
        path = self.root / ref.tenant / ref.name
        return bucket_problem(ref.name) is None and path.is_dir() and not path.is_symlink()

    def bucket(self, ref: BucketRef) -> Path:
        """
        Raises:
            BucketNotFoundError: there is none.
        """
        if not self.has_bucket(ref):
            raise BucketNotFoundError.of(ref)
        return self.root / ref.tenant / ref.name

    def object(self, ref: BucketRef, key: str) -> Path:
        """Where an object is or would be; its folders may not be there.

        Raises:
            BucketNotFoundError: there is none.
            ValidationError: no file can be called so.
            ObjectNotFoundError: a link is on the way.
        """
        path = self.bucket(ref) / key
        check_file_key(key)
        if os.path.realpath(path.parent) != str(path.parent):
            raise ObjectNotFoundError.of(ref, key)
        return path

    def create_bucket(self, ref: BucketRef) -> None:
        """See `FolderStore.create_bucket`."""
        check_bucket_name(ref.name)
        path = self.root / ref.tenant / ref.name
        with storage_errors():
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.mkdir()
            except FileExistsError as error:
                message = f"There is a bucket {ref.name!r} already."
                raise BucketExistsError(message, param="bucket_name") from error
            sync_folder(path.parent)

    def delete_bucket(self, ref: BucketRef) -> None:
        """See `FolderStore.delete_bucket`. Uploads that were never completed go with it."""
        path = self.bucket(ref)
        with storage_errors():
            for folder, _, _ in os.walk(path, topdown=False):
                try:
                    os.rmdir(folder)
                except OSError as error:
                    if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                        raise
                    message = f"The bucket {ref.name!r} is not empty."
                    raise BucketNotEmptyError(message, param="bucket_name") from error
            shutil.rmtree(self.uploads_folder(ref), ignore_errors=True)
            sync_folder(path.parent)

    def place(
        self,
        staged: StagedFile,
        ref: BucketRef,
        key: str,
        *,
        etag: str,
        headers: Mapping[str, str],
        is_new: bool = False,
    ) -> ObjectInfo:
        """Publish a staged file as an object. Raises what `FolderStore.put` does."""
        for _ in range(_NUM_PLACE_ATTEMPTS):
            path = self.object(ref, key)
            try:
                with storage_errors():
                    _make_folders(self.bucket(ref), path.parent)
                return staged.publish(path, key, etag=etag, headers=headers, is_new=is_new)
            except FileNotFoundError:
                continue
            except FileExistsError as error:
                message = f"There is an object {key!r} already."
                raise ObjectExistsError(message, param="key") from error
            except (NotADirectoryError, IsADirectoryError) as error:
                message = f"cannot be {key!r}: a folder's files and folders have different names"
                raise ValidationError.of("key", message, kind="key_conflict") from error
        raise BucketNotFoundError.of(ref)

    def delete_object(self, ref: BucketRef, key: str) -> None:
        """See `FolderStore.delete`."""
        bucket = self.bucket(ref)
        try:
            path = self.object(ref, key)
            with storage_errors():
                path.unlink()
                sync_folder(path.parent)
        except (ObjectNotFoundError, FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return
        for folder in path.parents:
            if folder == bucket or not _removed(folder):
                return


def _make_folders(bucket: Path, folder: Path) -> None:
    """Make the folders below a bucket, never the bucket: it may have been deleted meanwhile."""
    missing = bucket
    for segment in folder.relative_to(bucket).parts:
        missing = missing / segment
        try:
            missing.mkdir()
        except FileExistsError:
            continue
        sync_folder(missing.parent)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False  # something is in it
    return True
