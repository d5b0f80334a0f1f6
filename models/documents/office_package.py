"""The zip archives that Office files are: which parts they have, unpacked within limits."""

import lzma
import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from typing import IO, BinaryIO
from xml.etree import ElementTree

from models.documents.errors import UnreadableDocumentError

#: A part of a thousand pages of text has about 30 MB.
MAX_PART_BYTES = 256 * 2**20
_MAX_RATIO = 1000  # XML seldom shrinks to less than a hundredth
_RELATIONSHIPS = "{http://schemas.openxmlformats.org/package/2006/relationships}"
_DAMAGE = (  # what zipfile raises, beside its own error, of archives that lie about themselves
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
    *(EOFError, NotImplementedError, RuntimeError, OSError, ValueError, KeyError, IndexError),
)


class OfficePackage:
    """An open archive."""

    def __init__(self, file: BinaryIO) -> None:
        """
        Raises:
            UnreadableDocumentError: it is damaged.
        """
        try:
            self._archive = zipfile.ZipFile(file)
        except _DAMAGE as error:
            raise UnreadableDocumentError(
                "The archive is damaged or cut short: its directory cannot be read."
            ) from error
        self._names = set(self._archive.namelist())

    def has(self, name: str) -> bool:
        return name in self._names

    def check_size(self) -> None:
        """Refuse an archive that unpacks to far more than a document has.

        Raises:
            UnreadableDocumentError: it is a zip bomb.
        """
        infos = [info for info in self._archive.infolist() if info.filename.endswith(".xml")]
        for info in infos:
            self._check(info)
        total = sum(info.file_size for info in infos)
        if total > 2 * MAX_PART_BYTES:
            raise UnreadableDocumentError(
                f"The archive unpacks to {total:,} bytes; at most {2 * MAX_PART_BYTES:,} are read."
            )

    def elements(self, name: str) -> Iterator[tuple[str, ElementTree.Element]]:
        """`start` and `end` events of a part's elements, as `ElementTree.iterparse` has them; none
        if the part does not exist.

        Raises:
            UnreadableDocumentError: the part is damaged, or too large.
        """
        if not self.has(name):
            return
        try:
            with self._open(name) as part:
                yield from ElementTree.iterparse(part, events=("start", "end"))
        except UnreadableDocumentError:
            raise
        except ElementTree.ParseError as error:
            raise UnreadableDocumentError(f"{name} is damaged: {error}.") from error
        except _DAMAGE as error:
            raise UnreadableDocumentError(
                f"{name} is damaged or encrypted and cannot be unpacked."
            ) from error

    def relationships(self, name: str) -> dict[str, tuple[str, str]]:
        """What a part refers to within the archive: id -> (last word of the type, part's name)."""
        folder, file_name = posixpath.split(name)
        found: dict[str, tuple[str, str]] = {}
        for event, element in self.elements(f"{folder}/_rels/{file_name}.rels"):
            if event == "end" and element.tag == f"{_RELATIONSHIPS}Relationship":
                if element.get("TargetMode") == "External":
                    continue
                target = posixpath.normpath(posixpath.join("/", folder, element.get("Target", "")))
                kind = element.get("Type", "").rpartition("/")[2]
                found[element.get("Id", "")] = (kind, target.lstrip("/"))
        return found

    def _open(self, name: str) -> IO[bytes]:
        info = self._archive.getinfo(name)
        self._check(info)
        return self._archive.open(info)

    def _check(self, info: zipfile.ZipInfo) -> None:
        # A part that has more than its entry says is cut there, and fails its checksum.
        is_bomb = info.file_size > 2**20 and info.file_size > info.compress_size * _MAX_RATIO
        if info.file_size > MAX_PART_BYTES or is_bomb:
            raise UnreadableDocumentError(
                f"{info.filename} unpacks from {info.compress_size:,} to {info.file_size:,} bytes; "
                f"at most {MAX_PART_BYTES:,}, and {_MAX_RATIO:,} times as many, are read."
            )
