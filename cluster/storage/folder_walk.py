"""The keys under a folder in S3's order, from any point on, without reading what comes before.

Keys are ordered by their UTF-8 bytes. A folder's entries sorted by name, with the slash that
follows a folder's name counted in, are in that order already, so the walk needs no memory of the
whole bucket. Links are not followed and are no objects; nor are names that no key can have.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from cluster.storage.names import MAX_KEY_BYTES, can_begin_key, key_problem

LAST = b"\xff"  # after every UTF-8 text


class FolderWalk:
    """Iterates over (key, path). Blocks.

    `after` may be raised while it runs: what is not behind it is skipped, folders unread.
    """

    def __init__(self, folder: Path, *, prefix: str = "", after: bytes = b"") -> None:
        self._folder = os.fsencode(folder)
        self._prefix = prefix.encode("utf-8", "surrogatepass")
        self.after = after

    def __iter__(self) -> Iterator[tuple[str, Path]]:
        prefix = self._prefix.decode("utf-8", "surrogatepass")
        if not can_begin_key(prefix):
            return
        folders = prefix.rpartition("/")[0]
        if folders and key_problem(folders) is not None:
            return  # no key begins so, and the path might lead out of here
        start = folders.encode()
        if start and not self._is_plain_folder(start):
            return
        yield from self._below(start + b"/" if start else b"")

    def _below(self, base: bytes) -> Iterator[tuple[str, Path]]:
        """Everything under a folder, whose key is "" or ends with a slash."""
        for name, is_folder in self._entries(base):
            key = base + name
            if is_folder:
                if key + LAST > self.after and len(key) < MAX_KEY_BYTES:
                    yield from self._below(key)
            elif key > self.after:
                try:
                    text = key.decode()
                except UnicodeDecodeError:
                    continue
                if key_problem(text) is None:
                    yield text, Path(os.fsdecode(os.path.join(self._folder, key)))

    def _entries(self, base: bytes) -> list[tuple[bytes, bool]]:
        """(name, is it a folder) of what may hold wanted keys; a folder's name has its slash."""
        found = []
        try:
            with os.scandir(os.path.join(self._folder, base)) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    name = entry.name + b"/" if is_folder else entry.name
                    is_object = is_folder or entry.is_file(follow_symlinks=False)
                    if is_object and self._is_wanted(base + name, is_folder):
                        found.append((name, is_folder))
        except (FileNotFoundError, NotADirectoryError):
            return []  # deleted while we walk
        return sorted(found)

    def _is_wanted(self, key: bytes, is_folder: bool) -> bool:
        if key.startswith(self._prefix):
            last = key + LAST if is_folder else key
            return last > self.after
        return False

    def _is_plain_folder(self, base: bytes) -> bool:
        """Whether no segment of it is a link or `..`."""
        path = os.path.join(self._folder, base)
        return os.path.realpath(path) == path and os.path.isdir(path)
