"""Kreuzberg as it is used here: on one thread, without caches, OCR, or its changes to the text.

PDF comes out plain: as Markdown, headings that repeat from page to page are dropped. Word and
PowerPoint files are not given to it: version 4.10 drops every `&`, `<` and `>` of the former, and
does not say which slide a text is on.
"""

from dataclasses import dataclass
from typing import Any

import kreuzberg

from models.documents.errors import UnreadableDocumentError

_HTML_OPTIONS: dict[str, Any] = {
    "extract_metadata": False,
    # Their text stays; addresses and emphasis are noise to a search.
    "strip_tags": ["a", "b", "strong", "i", "em", "u", "img", "picture", "svg"],
    "preprocessing": {
        "enabled": True,
        "preset": "standard",
        "remove_navigation": True,
        "remove_forms": False,  # there are sites with all of a page in a form
    },
}
_MAX_REASON_CHARS = 200


@dataclass(frozen=True, slots=True)
class Sheet:
    """A sheet of a spreadsheet."""

    name: str
    rows: list[list[str]]


def extract_pdf_pages(data: bytes) -> list[str]:
    """The text of each page, empty where there is none.

    Raises:
        UnreadableDocumentError: with the reason.
    """
    try:
        result = _extract(data, "application/pdf", pages=kreuzberg.PageConfig(extract_pages=True))
    except UnreadableDocumentError as error:
        if "password" in str(error).lower():
            raise UnreadableDocumentError(
                "The PDF is encrypted: it does not open without a password."
            ) from error
        raise
    return [page["content"] for page in result.pages or []]


def extract_html_as_markdown(text: str) -> str:
    """Raises as `extract_pdf_pages` does."""
    result = _extract(
        text.encode(), "text/html", output_format="markdown", html_options=_HTML_OPTIONS
    )
    return result.content


def extract_sheets(data: bytes) -> list[Sheet]:
    """Sheets that have something in them. Raises as `extract_pdf_pages` does."""
    result = _extract(data, "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet")
    names = result.get_metadata_field("sheet_names") or []
    return [
        Sheet(
            name=names[table.page_number - 1] if table.page_number <= len(names) else "",
            rows=table.cells,
        )
        for table in result.tables
    ]


def _extract(data: bytes, mime_type: str, **options: Any) -> kreuzberg.ExtractionResult:
    config = kreuzberg.ExtractionConfig(
        use_cache=False,
        enable_quality_processing=False,
        concurrency=kreuzberg.ConcurrencyConfig(max_threads=1),
        **options,
    )
    try:
        return kreuzberg.extract_bytes_sync(data, mime_type, config)
    except Exception as error:  # it has no common base class of its errors
        text = str(error).removeprefix(f"{type(error).__name__}: ")
        reason = " ".join(text.split())[:_MAX_REASON_CHARS]
        raise UnreadableDocumentError(f"It cannot be parsed: {reason}") from error
