"""The `intercom` loader: help-centre articles as Intercom's API gives them, as blocks.

A file is one article, a list of them, or an answer of the API (`{"type": "list", "data": [...]}`).
The body's HTML is divided at its headings, and chunks at its paragraphs. `loader_metadata` has
`article_id`, `title`, `url`, `article_url` (the same), `updated_at` and `heading`.
"""

from collections.abc import Iterator
from dataclasses import replace

from models.documents.block import Block
from models.documents.errors import UnreadableDocumentError
from models.documents.html import read_html_text

_LISTS = ("data", "articles", "results")


def read_intercom(value: object) -> Iterator[Block]:
    """
    Raises:
        UnreadableDocumentError: the file has no articles.
    """
    articles = [item for item in _items(value) if isinstance(item, dict) and "body" in item]
    if not articles:
        raise UnreadableDocumentError(
            'It is not an Intercom article: there is no object with a "body", and no list of such.'
        )
    for article in articles:
        yield from _article_blocks(article)


def _items(value: object) -> list[object]:
    if isinstance(value, dict):
        for name in _LISTS:
            if isinstance(value.get(name), list):
                return list(value[name])
        return [value]
    return list(value) if isinstance(value, list) else []


def _article_blocks(article: dict[str, object]) -> Iterator[Block]:
    title = _text(article, "title")
    url = _text(article, "url")
    metadata = {
        "article_id": _text(article, "id"),
        "title": title,
        "url": url,
        "article_url": url,
        "updated_at": _text(article, "updated_at"),
    }
    for block in read_html_text(_text(article, "body"), title=title):
        heading = block.heading.rpartition(" > ")[2]
        yield replace(block, metadata={**metadata, "heading": heading})


def _text(article: dict[str, object], name: str) -> str:
    value = article.get(name)
    return "" if value is None else str(value)
