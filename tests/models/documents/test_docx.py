import io

import pytest

from models.documents.block import Block
from models.documents.docx import read_docx
from models.documents.errors import UnreadableDocumentError
from models.documents.office_package import OfficePackage
from tests.models.documents.made_files import archive, docx, paragraph, styles, table

W = 'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"'


def read(data: bytes) -> list[tuple[str, str]]:
    blocks: list[Block] = list(read_docx(OfficePackage(io.BytesIO(data))))
    return [(block.heading, block.text.strip()) for block in blocks]


def test_sections_stand_below_their_headings() -> None:
    data = docx(
        paragraph("The Handbook", style="Title"),
        paragraph("Before."),
        paragraph("Holidays", style="Heading1"),
        paragraph("Thirty days."),
        paragraph("Notice", style="Heading2"),
        paragraph("Two weeks."),
        paragraph("Pay", style="Heading1"),
        paragraph("Monthly."),
    )
    assert read(data) == [
        ("The Handbook", "The Handbook\n\nBefore."),
        ("The Handbook > Holidays", "Holidays\n\nThirty days."),
        ("The Handbook > Holidays > Notice", "Notice\n\nTwo weeks."),
        ("The Handbook > Pay", "Pay\n\nMonthly."),
    ]


def test_no_character_is_lost() -> None:
    # The library that reads PDF here makes "ATT is ab" of it.
    text = "AT&T is <a> \"b\" 'c' é 漢字 1 < 2"
    assert read(docx(paragraph(text))) == [("", text)]


def test_heading_styles_are_told_by_outline_level_name_and_ancestor() -> None:
    parts = styles(
        '<w:style w:styleId="X1"><w:name w:val="heading 1"/></w:style>',
        '<w:style w:styleId="X2"><w:name w:val="Mine"/><w:pPr><w:outlineLvl w:val="1"/></w:pPr>'
        "</w:style>",
        '<w:style w:styleId="X3"><w:name w:val="Child"/><w:basedOn w:val="X2"/></w:style>',
        '<w:style w:styleId="L1"><w:name w:val="Loop"/><w:basedOn w:val="L2"/></w:style>',
        '<w:style w:styleId="L2"><w:name w:val="Loop2"/><w:basedOn w:val="L1"/></w:style>',
        '<w:style w:styleId="B"><w:name w:val="Body"/><w:pPr><w:outlineLvl w:val="9"/></w:pPr>'
        "</w:style>",
    )
    body = [paragraph(name, style=name) for name in ("X1", "X2", "X3", "L1", "B")]
    assert [heading for heading, _ in read(docx(*body, parts=parts))] == [
        "X1",
        "X1 > X2",
        "X1 > X3",
    ]


def test_a_tables_rows_are_lines() -> None:
    assert read(docx(table([["Name", "Price"], ["Cod & chips", "3"]]), paragraph("After."))) == [
        ("", "Name | Price\n\nCod & chips | 3\n\nAfter.")
    ]


def test_tracked_changes_are_read_as_if_accepted() -> None:
    body = (
        "<w:p><w:r><w:t>Stays </w:t></w:r><w:del><w:r><w:delText>gone</w:delText></w:r></w:del>"
        "<w:moveFrom><w:r><w:t>moved</w:t></w:r></w:moveFrom>"
        "<w:ins><w:r><w:t>and is new</w:t></w:r></w:ins></w:p>"
    )
    assert read(docx(body)) == [("", "Stays and is new")]


def test_tabs_breaks_and_text_boxes_are_read_once() -> None:
    box = "<w:txbxContent>" + paragraph("In a box.") + "</w:txbxContent>"
    body = (
        "<w:p><w:pPr><w:tabs><w:tab/></w:tabs></w:pPr><w:r><w:t>a</w:t><w:tab/><w:t>b</w:t><w:br/>"
        "<w:t>c</w:t></w:r></w:p><w:p><w:r><w:t>With</w:t><mc:AlternateContent><mc:Choice>"
        f"{box}</mc:Choice><mc:Fallback>{box}</mc:Fallback></mc:AlternateContent></w:r></w:p>"
    )
    assert read(docx(body)) == [("", "a\tb\nc\n\nIn a box.\n\nWith")]


def test_footnotes_come_last() -> None:
    footnotes = f"<w:footnotes {W}><w:footnote>{paragraph('A note.')}</w:footnote></w:footnotes>"
    data = docx(
        paragraph("H", style="Heading1"),
        paragraph("Text."),
        parts={"word/footnotes.xml": footnotes},
    )
    assert read(data) == [("H", "H\n\nText."), ("", "A note.")]


def test_a_damaged_part_is_refused_by_name() -> None:
    with pytest.raises(UnreadableDocumentError, match=r"word/document\.xml is damaged"):
        read(docx("<w:p>"))


def test_entities_do_not_explode() -> None:
    lines = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
    body = f'<!DOCTYPE d [<!ENTITY e0 "ha">{lines}]><w:document {W}><w:body><w:p><w:r><w:t>&e11;'
    data = archive({"word/document.xml": body + "</w:t></w:r></w:p></w:body></w:document>"})
    with pytest.raises(UnreadableDocumentError, match="damaged"):
        read(data)


def test_an_external_entity_is_not_fetched() -> None:
    body = (
        f'<!DOCTYPE d [<!ENTITY x SYSTEM "file:///etc/passwd">]><w:document {W}><w:body><w:p><w:r>'
        "<w:t>a&x;b</w:t></w:r></w:p></w:body></w:document>"
    )
    with pytest.raises(UnreadableDocumentError, match="undefined entity"):
        read(archive({"word/document.xml": body}))
