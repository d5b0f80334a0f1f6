import contextlib
import io

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.documents.errors import UnreadableDocumentError
from models.documents.parser import read_blocks
from models.documents.settings import Loader
from tests.models.documents.made_files import docx, paragraph, pdf, pptx, styles, table


def read(data: bytes, filename: str, loader: Loader = Loader.DEFAULT) -> str:
    return "".join(block.text for block in read_blocks(io.BytesIO(data), filename, loader=loader))


@pytest.mark.parametrize(
    ("data", "filename", "text"),
    [
        (pdf(["In a PDF."]), "wrong.txt", "In a PDF.\n\n"),
        (docx(paragraph("In Word.")), "wrong.pdf", "In Word.\n\n"),
        (b"plain\r\ntext\x00", "a.pdf", ""),
        (b"plain\r\ntext", "a.docx", "plain\ntext"),
        ("Grüße".encode("latin-1"), "a.txt", "Grüße"),
        ("Grüße".encode("utf-16"), "a.txt", "Grüße"),
        (b'[{"a": 1}]', "a.txt", "a: 1\n\n"),
        (b'{"a": 1}\n{"a": 2}\n', "a.txt", "a: 1\n\na: 2\n\n"),
        (b'{"a": 1', "cut.json", '{"a": 1'),
        (b"[1] A footnote.", "a.txt", "[1] A footnote."),
        (b"[" * 5000, "deep.json", "[" * 5000),
        (b"# A\n\ntext", "a.md", "# A\n\ntext"),
        (b"<html><p>text</p></html>", "a.txt", "text\n"),
        (b"a;b\n1;2\n", "a.csv", "a: 1\nb: 2\n\n"),
    ],
)
def test_files_are_read_by_what_they_are(data: bytes, filename: str, text: str) -> None:
    if b"\0" in data and not text:
        with pytest.raises(UnreadableDocumentError, match="binary"):
            read(data, filename)
    else:
        assert read(data, filename) == text


@pytest.mark.parametrize("data", [b"  \n\n\t ", b"<html><body></body></html>", b"[]", b"{}"])
def test_a_file_without_text_is_refused(data: bytes) -> None:
    with pytest.raises(UnreadableDocumentError, match="There is no text in it"):
        read(data, "a.txt")


def test_the_intercom_loader_reads_articles() -> None:
    article = orjson.dumps({"id": 1, "title": "T", "body": "<p>Text.</p>"})
    assert read(article, "a.json", Loader.INTERCOM) == "Text.\n"
    assert "id: 1" in read(article, "a.json")


def test_the_intercom_loader_refuses_other_json_and_reads_other_files() -> None:
    with pytest.raises(UnreadableDocumentError, match="not an Intercom article"):
        read(b'{"a": 1}', "a.json", Loader.INTERCOM)
    with pytest.raises(UnreadableDocumentError, match="not JSON"):
        read(b'{"a": 1', "a.json", Loader.INTERCOM)
    assert read(pdf(["text"]), "a.pdf", Loader.INTERCOM) == "text\n"


WHOLE_FILES = [
    ("a.docx", docx(paragraph("H", style="Heading1"), paragraph("text"), table([["a", "b"]]))),
    ("a.docx", docx(paragraph("x", style="X"), parts=styles('<w:style w:styleId="X"/>'))),
    ("a.pptx", pptx([("T", "body"), ("U", "more")], notes={0: "note"})),
    ("a.html", b"<html><head><title>T</title></head><body><h1>H</h1><p>text</p></body></html>"),
    ("a.md", b"---\nx\n---\n# H\n\ntext\n```\ncode\n```\nU\n==\n"),
    ("a.csv", b'name,city\n"Ann",Oslo\nBob;x,Rome\n'),
    ("a.json", b'{"data": [{"a": 1, "b": [1, {"c": "\xc3\xa4"}]}, {"a": null}], "x": "y"}'),
    ("a.txt", "Größe, 漢字. ".encode() * 20),
]


@settings(max_examples=300)
@given(
    whole=st.sampled_from(WHOLE_FILES),
    edits=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=20)), max_size=4
    ),
    loader=st.sampled_from(Loader),
)
def test_a_damaged_file_is_read_or_refused(
    whole: tuple[str, bytes], edits: list[tuple[float, int, bytes]], loader: Loader
) -> None:
    filename, data = whole
    for place, num_removed, added in edits:
        start = int(place * len(data))
        data = data[:start] + added + data[start + num_removed :]
    with contextlib.suppress(UnreadableDocumentError):
        assert read(data, filename, loader).strip()
