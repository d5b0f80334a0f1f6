"""Files of every kind, made by hand: small, exact, and hostile where a test asks for it."""

import hashlib
import io
import struct
import zipfile
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

_PASSWORD_PADDING = bytes.fromhex(
    "28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A"
)
_OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGE = "http://schemas.openxmlformats.org/package/2006"
_W = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
_P = "http://schemas.openxmlformats.org/presentationml/2006/main"
_A = "http://schemas.openxmlformats.org/drawingml/2006/main"
_S = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
_XML = '<?xml version="1.0" encoding="UTF-8"?>'


def pdf(pages: Sequence[str], *, password: str | None = None) -> bytes:
    """Each page's lines in Helvetica; with a password, encrypted (40-bit RC4)."""
    font, first = 3, 4
    kids = " ".join(f"{first + 2 * index} 0 R" for index in range(len(pages)))
    objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>",
    ]
    encryption, key = ("", b"") if password is None else _encryption(password)
    for index, text in enumerate(pages):
        number = first + 2 * index + 1
        content = _page_content(text)
        if key:
            salt = struct.pack("<I", number)[:3] + b"\0\0"
            content = _rc4(hashlib.md5(key + salt).digest()[:10], content)
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {number} 0 R "
            f"/Resources << /Font << /F1 {font} 0 R >> >> >>".encode()
        )
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    return _pdf_file(objects, encryption)


def _page_content(text: str) -> bytes:
    operators = ["BT /F1 12 Tf 14 TL 72 720 Td"]
    escaped = str.maketrans({character: "\\" + character for character in "\\()"})
    operators += [f"({line.translate(escaped)}) Tj T*" for line in text.split("\n")]
    return "\n".join([*operators, "ET"]).encode("cp1252")


def _pdf_file(objects: Sequence[bytes], encryption: str) -> bytes:
    out = bytearray(b"%PDF-1.4\n")
    offsets = []
    for number, body in enumerate(objects, start=1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    start = len(out)
    out += b"xref\n0 %d\n0000000000 65535 f \n" % (len(objects) + 1)
    out += b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += f"trailer\n<< /Size {len(objects) + 1} /Root 1 0 R {encryption} >>\n".encode()
    return bytes(out + b"startxref\n%d\n%%%%EOF\n" % start)


def _encryption(password: str) -> tuple[str, bytes]:
    """The standard security handler's revision 2: its dictionary, and the file's key."""
    padded = (password.encode() + _PASSWORD_PADDING)[:32]
    file_id = b"0123456789abcdef"
    owner = _rc4(hashlib.md5(padded).digest()[:5], padded)
    key = hashlib.md5(padded + owner + struct.pack("<i", -4) + file_id).digest()[:5]
    user = _rc4(key, _PASSWORD_PADDING)
    dictionary = (
        f"/Encrypt << /Filter /Standard /V 1 /R 2 /O <{owner.hex()}> /U <{user.hex()}> /P -4 >> "
        f"/ID [<{file_id.hex()}> <{file_id.hex()}>]"
    )
    return dictionary, key


def _rc4(key: bytes, data: bytes) -> bytes:
    state = list(range(256))
    j = 0
    for i in range(256):
        j = (j + state[i] + key[i % len(key)]) % 256
        state[i], state[j] = state[j], state[i]
    out = bytearray()
    i = j = 0
    for byte in data:
        i = (i + 1) % 256
        j = (j + state[i]) % 256
        state[i], state[j] = state[j], state[i]
        out.append(byte ^ state[(state[i] + state[j]) % 256])
    return bytes(out)


def archive(parts: Mapping[str, str | bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in parts.items():
            file.writestr(name, content)
    return out.getvalue()


def bomb(part: str, num_bytes: int) -> bytes:
    """An archive with a part that unpacks to spaces."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file,
        file.open(part, "w", force_zip64=True) as stream,
    ):
        for _ in range(num_bytes // 2**20):
            stream.write(b" " * 2**20)
    return out.getvalue()


def _relationships(*items: tuple[str, str, str]) -> str:
    body = "".join(
        f'<Relationship Id="{identifier}" Type="{_OFFICE}/{kind}" Target="{target}"/>'
        for identifier, kind, target in items
    )
    return f'{_XML}<Relationships xmlns="{_PACKAGE}/relationships">{body}</Relationships>'


def paragraph(text: str, *, style: str = "") -> str:
    """A Word paragraph's XML."""
    properties = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{properties}<w:r><w:t>{escape(text)}</w:t></w:r></w:p>"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A Word table's XML."""
    return (
        "<w:tbl>"
        + "".join(
            "<w:tr>" + "".join(f"<w:tc>{paragraph(cell)}</w:tc>" for cell in row) + "</w:tr>"
            for row in rows
        )
        + "</w:tbl>"
    )


def docx(*body: str, parts: Mapping[str, str] | None = None) -> bytes:
    """`body`: XML of paragraphs and tables. `parts`: further parts of the archive."""
    document = (
        f'{_XML}<w:document xmlns:w="{_W}" '
        'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006">'
        f"<w:body>{''.join(body)}</w:body></w:document>"
    )
    return archive(
        {
            "_rels/.rels": _relationships(("rId1", "officeDocument", "word/document.xml")),
            "word/document.xml": document,
            **(parts or {}),
        }
    )


def styles(*entries: str) -> dict[str, str]:
    """Word's styles part, from the XML of its styles."""
    return {"word/styles.xml": f'{_XML}<w:styles xmlns:w="{_W}">{"".join(entries)}</w:styles>'}


def pptx(
    slides: Sequence[tuple[str, str]],
    *,
    notes: Mapping[int, str] | None = None,
    order: Sequence[int] | None = None,
) -> bytes:
    """Slides with a title and a body; `order`: how the presentation shows them (from 0)."""
    shown = range(len(slides)) if order is None else order
    names = f'xmlns:p="{_P}" xmlns:a="{_A}" xmlns:r="{_OFFICE}"'
    ids = "".join(f'<p:sldId id="{256 + index}" r:id="rId{index}"/>' for index in shown)
    parts = {
        "ppt/presentation.xml": f"{_XML}<p:presentation {names}><p:sldIdLst>{ids}</p:sldIdLst>"
        "</p:presentation>",
        "ppt/_rels/presentation.xml.rels": _relationships(
            *((f"rId{index}", "slide", f"slides/slide{index}.xml") for index in shown)
        ),
    }
    for index, (title, body) in enumerate(slides):
        shapes = _shape("title", title) + _shape("body", body) + _shape("sldNum", str(index))
        parts[f"ppt/slides/slide{index}.xml"] = (
            f"{_XML}<p:sld {names}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:sld>"
        )
    for index, text in (notes or {}).items():
        parts[f"ppt/slides/_rels/slide{index}.xml.rels"] = _relationships(
            ("rId1", "notesSlide", f"../notesSlides/notesSlide{index}.xml")
        )
        parts[f"ppt/notesSlides/notesSlide{index}.xml"] = (
            f"{_XML}<p:notes {names}><p:cSld><p:spTree>{_shape('body', text)}</p:spTree></p:cSld>"
            "</p:notes>"
        )
    return archive(parts)


def _shape(placeholder: str, text: str) -> str:
    return (
        f'<p:sp><p:nvSpPr><p:nvPr><p:ph type="{placeholder}"/></p:nvPr></p:nvSpPr>'
        f"<p:txBody><a:p><a:r><a:t>{escape(text)}</a:t></a:r></a:p></p:txBody></p:sp>"
    )


def xlsx(sheets: Mapping[str, Sequence[Sequence[str | float]]]) -> bytes:
    """Sheets by name; texts are kept inline."""
    listed = "".join(
        f'<sheet name="{escape(name)}" sheetId="{index}" r:id="rId{index}"/>'
        for index, name in enumerate(sheets, start=1)
    )
    main = "application/vnd.openxmlformats-officedocument.spreadsheetml"
    parts = {
        "[Content_Types].xml": f'{_XML}<Types xmlns="{_PACKAGE}/content-types">'
        '<Default Extension="xml" ContentType="application/xml"/>'
        f'<Override PartName="/xl/workbook.xml" ContentType="{main}.sheet.main+xml"/></Types>',
        "_rels/.rels": _relationships(("rId1", "officeDocument", "xl/workbook.xml")),
        "xl/workbook.xml": f'{_XML}<workbook xmlns="{_S}" xmlns:r="{_OFFICE}">'
        f"<sheets>{listed}</sheets></workbook>",
        "xl/_rels/workbook.xml.rels": _relationships(
            *(
                (f"rId{index}", "worksheet", f"worksheets/sheet{index}.xml")
                for index in range(1, len(sheets) + 1)
            )
        ),
    }
    for index, rows in enumerate(sheets.values(), start=1):
        parts[f"xl/worksheets/sheet{index}.xml"] = (
            f'{_XML}<worksheet xmlns="{_S}"><sheetData>'
            + "".join(_row(number, row) for number, row in enumerate(rows, start=1))
            + "</sheetData></worksheet>"
        )
    return archive(parts)


def _row(number: int, row: Sequence[str | float]) -> str:
    cells = ""
    for column, value in enumerate(row):
        place = f"{chr(ord('A') + column)}{number}"
        if isinstance(value, str):
            cells += f'<c r="{place}" t="inlineStr"><is><t>{escape(value)}</t></is></c>'
        else:
            cells += f'<c r="{place}"><v>{value}</v></c>'
    return f'<row r="{number}">{cells}</row>'
