import io

import pytest

from models.documents.errors import UnreadableDocumentError
from models.documents.file_kind import FileKind, detect_kind
from tests.models.documents.made_files import archive, docx, paragraph, pdf, pptx, xlsx

PDF = pdf(["text"])
DOCX = docx(paragraph("text"))


@pytest.mark.parametrize(
    ("data", "filename", "kind"),
    [
        (PDF, "a.pdf", FileKind.PDF),
        (PDF, "a.txt", FileKind.PDF),
        (b"\n\n" + PDF, "no-suffix", FileKind.PDF),
        (DOCX, "a.docx", FileKind.DOCX),
        (DOCX, "a.pdf", FileKind.DOCX),
        (pptx([("a", "b")]), "a.PPTX", FileKind.PPTX),
        (xlsx({"a": [["b"]]}), "a.csv", FileKind.XLSX),
        (b"<!DOCTYPE HTML><p>", "a.txt", FileKind.HTML),
        ("\ufeff <html>".encode(), "a", FileKind.HTML),
        ("\ufeff<html>".encode("utf-16-le"), "a", FileKind.HTML),
        (b"<?xml version='1.0'?><!-- x --><html>", "a.xml", FileKind.HTML),
        (b"<p>fragment", "a.htm", FileKind.HTML),
        (b"# Title", "folder/A.MD", FileKind.MARKDOWN),
        (b"# Title", "a.txt", FileKind.TEXT),
        (b"a,b", "a.csv", FileKind.CSV),
        (b"[x],b", "a.csv", FileKind.CSV),
        (b' {"a": 1}', "a.txt", FileKind.JSON),
        (b'{"a": 1}\n{"a": 2}', "a.jsonl", FileKind.JSON),
        (b"[link](x)", "a.md", FileKind.MARKDOWN),
        (b"hello", "a.json", FileKind.TEXT),
        (b"hello", "a.pdf", FileKind.TEXT),
        (b"hello", "a.unknown", FileKind.TEXT),
    ],
)
def test_the_content_counts_more_than_the_name(data: bytes, filename: str, kind: FileKind) -> None:
    assert detect_kind(io.BytesIO(data), filename) is kind


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"\x89PNG\r\n\x1a\n", "PNG image; text in images is not recognized"),
        (b"\xff\xd8\xff\xe0", "JPEG"),
        (b"\0\0\0\x18ftypmp42", "MP4"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "old or encrypted Office file"),
        (b"{\\rtf1", "RTF"),
        (b"\x1f\x8b\x08", "gzip archive; unpack it"),
        (archive({"a.txt": "text"}), "ZIP archive, and not a Word, PowerPoint or Excel file"),
        (DOCX[: len(DOCX) // 2], "damaged or cut short"),
        (b"\x7fELF", "a program"),
    ],
)
def test_what_is_not_read_is_refused_by_its_name(data: bytes, reason: str) -> None:
    with pytest.raises(UnreadableDocumentError, match=reason):
        detect_kind(io.BytesIO(data), "a.txt")
