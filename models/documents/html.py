"""HTML as blocks: converted to Markdown, without navigation, forms, scripts and styles."""

import codecs
import html
import io
import re
from collections.abc import Iterator
from typing import BinaryIO

from models.documents.block import Block
from models.documents.extraction import extract_html_as_markdown
from models.documents.markdown import read_markdown
from models.documents.text_encoding import WEB_ENCODINGS, detect_encoding

_DECLARED_CHARSET = re.compile(
    rb"<meta[^>]{0,200}charset\s{0,9}=\s{0,9}[\"']?([A-Za-z0-9_.:-]{1,40})"
)
_DECLARATION_BYTES = 4096
_HEAD_END = re.compile(r"</head\s*>|(?=<body\b)", re.IGNORECASE)
_TITLE_END = re.compile(r"</title\s*>", re.IGNORECASE)
_TITLE = re.compile(r"<title\b[^>]*>([^<]*)</title", re.IGNORECASE)
_MAX_HEAD_CHARS = 65_536
_MAX_TITLE_CHARS = 200


def read_html(file: BinaryIO) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: it is not text, or cannot be converted.
    """
    yield from read_html_text(_decode(file.read()))


def read_html_text(text: str, *, title: str | None = None) -> Iterator[Block]:
    """`title`: None for the page's own."""
    head, body = _divide(text)
    page_title = _title(head) if title is None else title
    yield from read_markdown(extract_html_as_markdown(body), title=page_title)


def _decode(data: bytes) -> str:
    has_mark = data.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-8-sig")  # nothing else is valid UTF-8 by chance
    except UnicodeDecodeError:
        pass
    declared = _DECLARED_CHARSET.search(data[:_DECLARATION_BYTES].lower())
    codec = "" if declared is None else WEB_ENCODINGS.get(declared.group(1).decode("ascii"), "")
    if codec and not has_mark:
        try:
            return data.decode(codec)
        except UnicodeDecodeError:
            pass  # it is wrong: look at the bytes
    return data.decode(detect_encoding(io.BytesIO(data)), errors="replace")


def _divide(text: str) -> tuple[str, str]:
    """The head, and the rest: the converter would write the head's fields into the text."""
    match = _HEAD_END.search(text) or _TITLE_END.search(text)
    return (text[: match.end()], text[match.end() :]) if match else ("", text)


def _title(head: str) -> str:
    match = _TITLE.search(head[:_MAX_HEAD_CHARS])
    return "" if match is None else " ".join(html.unescape(match[1]).split())[:_MAX_TITLE_CHARS]
