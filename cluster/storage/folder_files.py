"""Files of the storage folder: written apart and moved into place whole, read without links.

Beside its bytes a file carries a record in an extended attribute: the ETag and the headers that it
was put with. The record counts only while the file has the size and time it had then, so a file
that somebody edits by hand gets another ETag. Everything here blocks; `folder_store` runs it on
threads.

    user.shoal.object   JSON of `FileRecord`
"""

import contextlib
import errno
import hashlib
import logging
import os
import secrets
import stat
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from cluster.storage.errors import StorageAccessError, StorageFullError
from cluster.storage.stored_object import ObjectInfo

RECORD_ATTRIBUTE = "user.shoal.object"
COPY_BYTES = 2**26
logger = logging.getLogger(__name__)

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# EXDEV: something else is mounted there, into which nothing can be moved.
_REFUSED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EXDEV}


class FileRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was known of a file when it was put."""

    etag: str
    num_bytes: int
    mtime_ns: int
    headers: dict[str, str] = {}


class StagedFile:
    """A new file that nobody sees until `publish`. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: on the same file system as the place where the file is to go.
        """
        self._path = folder / secrets.token_hex(16)
        with storage_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("xb")
        self._digest = hashlib.md5(usedforsecurity=False)
        self._lock = threading.Lock()
        self._is_published = False
        self.num_bytes = 0

    @property
    def md5(self) -> str:
        return self._digest.hexdigest()

    def write(self, data: bytes) -> None:
        """
        Raises:
            StorageFullError: there is no room.
        """
        with self._lock, storage_errors():
            self._file.write(data)
            self._digest.update(data)
            self.num_bytes += len(data)

    def append_file(self, path: Path) -> None:
        """Add another file's bytes, in the kernel; the digest does not cover them."""
        with self._lock, storage_errors(), path.open("rb") as source:
            self._file.flush()
            num_bytes = os.fstat(source.fileno()).st_size
            self._file.seek(self.num_bytes)
            for offset in range(0, num_bytes, COPY_BYTES):
                length = min(COPY_BYTES, num_bytes - offset)
                if os.sendfile(self._file.fileno(), source.fileno(), offset, length) != length:
                    raise OSError(errno.EIO, f"{path} could not be copied whole")
            self.num_bytes += num_bytes

    def publish(
        self, path: Path, key: str, *, etag: str, headers: Mapping[str, str], is_new: bool = False
    ) -> ObjectInfo:
        """Make it the file at `path`, in one step and on the disk when this returns.

        Raises:
            FileExistsError: there is a file at `path`, and `is_new` forbids that.
            FileNotFoundError: the folder of `path` is gone.
            IsADirectoryError: `path` is a folder.
            StorageFullError: there is no room.
        """
        with self._lock, storage_errors():
            self._file.flush()
            descriptor = self._file.fileno()
            record = FileRecord(
                etag=etag,
                num_bytes=self.num_bytes,
                mtime_ns=os.fstat(descriptor).st_mtime_ns,
                headers=dict(headers),
            )
            write_record(descriptor, record)
            os.fsync(descriptor)
            if is_new and not path.is_dir():  # which `replace` complains about
                path.hardlink_to(self._path)
                self._path.unlink()
            else:
                self._path.replace(path)
            self._is_published = True
            info = info_of(key, os.fstat(descriptor), read_record(descriptor))
            self._file.close()
            sync_folder(path.parent)
        return info

    def discard(self) -> None:
        """Leave nothing behind, unless it was published."""
        with self._lock:
            if not self._is_published:
                self._path.unlink(missing_ok=True)
                # What it could not write any more is not wanted any more.
                with contextlib.suppress(OSError):
                    self._file.close()


class FileReader:
    """An open file of a bucket. `close` it; its methods may be called from any thread."""

    def __init__(self, path: Path, key: str) -> None:
        """
        Raises:
            FileNotFoundError: there is no such file; folders, links and devices are none.
            StorageAccessError: this process may not read it.
        """
        with storage_errors():
            # Without O_NONBLOCK a named pipe that lies there would be waited for.
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(path, flags)
            self._file = os.fdopen(descriptor, "rb", buffering=0)
            self._lock = threading.Lock()
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                self._file.close()
                raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
            self.info = info_of(key, status, read_record(descriptor))

    def read(self, offset: int, num_bytes: int) -> bytes:
        """So many bytes, fewer only where the file ends."""
        with self._lock, storage_errors():
            return os.pread(self._file.fileno(), num_bytes, offset)

    def close(self) -> None:
        with self._lock:
            self._file.close()


def look_at(path: Path, key: str) -> ObjectInfo:
    """What is known of a file without opening it.

    Raises:
        FileNotFoundError: there is no such file; folders, links and devices are none.
    """
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))
    return info_of(key, status, read_record(path))


def info_of(key: str, status: os.stat_result, record: FileRecord | None) -> ObjectInfo:
    """A file's facts; `record` only if it is about this content."""
    is_current = (
        record is not None
        and record.num_bytes == status.st_size
        and record.mtime_ns == status.st_mtime_ns
    )
    if record is None or not is_current:
        etag = f"{status.st_ino:x}-{status.st_size:x}-{status.st_mtime_ns:x}"
        headers: dict[str, str] = {}
    else:
        etag, headers = record.etag, record.headers
    return ObjectInfo(
        key=key,
        num_bytes=status.st_size,
        etag=etag,
        modified_at=status.st_mtime_ns / 1e9,
        headers=headers,
    )


def read_record(file: int | Path) -> FileRecord | None:
    """The record beside a file; None where there is none, or none that can be read."""
    try:
        # A path's last segment may have become a link meanwhile; a descriptor is what it is.
        data = os.getxattr(file, RECORD_ATTRIBUTE, follow_symlinks=isinstance(file, int))
        return msgspec.json.decode(data, type=FileRecord)
    except (OSError, msgspec.DecodeError):
        return None


def write_record(descriptor: int, record: FileRecord) -> None:
    """Best effort: some file systems have no extended attributes, and then there is no record."""
    data = msgspec.json.encode(record)
    # ENOSPC here means that the attributes have no room, which says nothing about the disk.
    with contextlib.suppress(OSError):
        os.setxattr(descriptor, RECORD_ATTRIBUTE, data)


def sync_folder(folder: Path) -> None:
    """A file's name is on the disk only when its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def storage_errors() -> Iterator[None]:
    """What the system refuses, as errors that a client may see."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFullError("The disk of the object store is full.") from error
        if error.errno in _REFUSED:
            logger.error("the storage folder cannot be used: %s", error)  # paths are ours alone
            raise StorageAccessError("The server may not read or write its storage.") from error
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.ENAMETOOLONG):
            # A link, a socket, or a name that no file can have: no object is there.
            raise FileNotFoundError(errno.ENOENT, error.strerror, error.filename) from error
        raise
