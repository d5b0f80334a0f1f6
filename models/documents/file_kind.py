"""What a file is: told by its content first, and by its name where the content leaves a choice."""

from enum import Enum, auto
from pathlib import PurePosixPath
from typing import BinaryIO

from models.documents.errors import UnreadableDocumentError
from models.documents.office_package import OfficePackage

HEAD_BYTES = 4096


class FileKind(Enum):
    """What there is a parser for."""

    PDF = auto()
    DOCX = auto()
    PPTX = auto()
    XLSX = auto()
    HTML = auto()
    MARKDOWN = auto()
    CSV = auto()
    JSON = auto()  # or JSON lines; or text that only begins like it
    TEXT = auto()


_SUFFIXES = {
    ".html": FileKind.HTML,
    ".htm": FileKind.HTML,
    ".xhtml": FileKind.HTML,
    ".md": FileKind.MARKDOWN,
    ".markdown": FileKind.MARKDOWN,
    ".mdx": FileKind.MARKDOWN,
    ".csv": FileKind.CSV,
    ".tsv": FileKind.CSV,
    ".json": FileKind.JSON,
    ".jsonl": FileKind.JSON,
    ".ndjson": FileKind.JSON,
}
_OFFICE_PARTS = {
    "word/document.xml": FileKind.DOCX,
    "ppt/presentation.xml": FileKind.PPTX,
    "xl/workbook.xml": FileKind.XLSX,
}
_ZIP = b"PK\x03\x04"
# What is known and not read: named, so that nobody searches for the text in vain.
_REFUSED = (
    (b"PK\x05\x06", "an empty ZIP archive"),
    (
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1",
        "an old or encrypted Office file; save it as .docx, .pptx or .xlsx without a password",
    ),
    (b"{\\rtf", "a rich text file (RTF); save it as .docx"),
    (b"\x89PNG", "a PNG image; text in images is not recognized"),
    (b"\xff\xd8\xff", "a JPEG image; text in images is not recognized"),
    (b"GIF8", "a GIF image; text in images is not recognized"),
    (b"II*\0", "a TIFF image; text in images is not recognized"),
    (b"MM\0*", "a TIFF image; text in images is not recognized"),
    (b"RIFF", "an image, sound or video file; only texts are read"),
    (b"ID3", "an MP3 file; speech is not recognized"),
    (b"OggS", "an Ogg file; speech is not recognized"),
    (b"fLaC", "a FLAC file; speech is not recognized"),
    (b"\x1aE\xdf\xa3", "a WebM or Matroska file; speech is not recognized"),
    (b"\x1f\x8b", "a gzip archive; unpack it"),
    (b"BZh", "a bzip2 archive; unpack it"),
    (b"\xfd7zXZ", "an xz archive; unpack it"),
    (b"7z\xbc\xaf'\x1c", "a 7z archive; unpack it"),
    (b"Rar!", "a RAR archive; unpack it"),
    (b"(\xb5/\xfd", "a Zstandard archive; unpack it"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3\0", "an SQLite database"),
    (b"PAR1", "a Parquet file"),
)
_HTML_STARTS = (b"<!doctype html", b"<html", b"<head", b"<body")


def detect_kind(file: BinaryIO, filename: str) -> FileKind:
    """
    Raises:
        UnreadableDocumentError: it is empty, or something known that is not read.
    """
    file.seek(0)
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if not head:
        raise UnreadableDocumentError("The file is empty.")
    if b"%PDF-" in head[:1024]:
        return FileKind.PDF
    if head.startswith(_ZIP):
        return _kind_of_archive(file)
    _refuse_known(head)
    text = head.lstrip(b"\xef\xbb\xbf\xff\xfe\0 \t\r\n").replace(b"\0", b"")  # UTF-16 too
    if text[:64].lower().startswith(_HTML_STARTS) or _is_html_after_prologue(text):
        return FileKind.HTML
    by_name = _SUFFIXES.get(PurePosixPath(filename.lower()).suffix, FileKind.TEXT)
    if text[:1] in (b"{", b"[") and by_name in (FileKind.TEXT, FileKind.JSON):
        return FileKind.JSON
    return by_name if by_name is not FileKind.JSON else FileKind.TEXT


def _kind_of_archive(file: BinaryIO) -> FileKind:
    package = OfficePackage(file)
    file.seek(0)
    for part, kind in _OFFICE_PARTS.items():
        if package.has(part):
            return kind
    raise UnreadableDocumentError(
        "It is a ZIP archive, and not a Word, PowerPoint or Excel file; unpack it."
    )


def _refuse_known(head: bytes) -> None:
    for start, name in _REFUSED:
        if head.startswith(start):
            raise UnreadableDocumentError(f"It is {name}.")
    if head[4:8] == b"ftyp":
        raise UnreadableDocumentError("It is an MP4 or HEIC file; only texts are read.")


def _is_html_after_prologue(text: bytes) -> bool:
    """Whether comments or an XML declaration stand before the page."""
    if not text.startswith((b"<!--", b"<?xml")):
        return False
    lowered = text.lower()
    return any(start in lowered for start in _HTML_STARTS[:2])
