"""The links of an HTML page, and what it asks of crawlers.

Read with bounded expressions, not with a parser: a page may be made to keep one busy.
"""

import html
import re
from dataclasses import dataclass

from deployments.crawler.errors import CrawlError
from deployments.crawler.site_url import SiteURL

MAX_LINKS = 5000
_MAX_HTML_CHARS = 4 * 2**20
_IGNORED = re.compile(r"<!--.*?(?:-->|\Z)|<(script|style)\b.*?(?:</\1|\Z)", re.DOTALL | re.I)
_TAG = re.compile(r"<(a|area|base|meta)\s([^<>]{1,4096})>", re.IGNORECASE)
_ATTRIBUTE = re.compile(  # a quote that is not closed ends with the tag
    r"\b(href|rel|name|content)\s{0,8}=\s{0,8}"
    r"(?:\"([^\"]*)(?:\"|\Z)|'([^']*)(?:'|\Z)|([^\s\"'>]+))",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PageLinks:
    """`urls`: in the order of the page, each once."""

    urls: tuple[SiteURL, ...]
    is_indexable: bool  # the page does not say "noindex"


def page_links(text: str, url: SiteURL, *, robots_header: str = "") -> PageLinks:
    """`url`: of the page. `robots_header`: its `X-Robots-Tag`."""
    directives = _directives(robots_header)
    base = url
    references: dict[str, None] = {}
    for match in _TAG.finditer(_IGNORED.sub(" ", text[:_MAX_HTML_CHARS])):
        attributes = _attributes(match[2])
        reference = attributes.get("href", "")
        tag = match[1].lower()
        if tag == "meta" and attributes.get("name", "").lower() in ("robots", "shoalcrawler"):
            directives |= _directives(attributes.get("content", ""))
        elif tag == "base" and reference and base is url:
            base = _joined(url, reference) or url
        elif reference and "nofollow" not in attributes.get("rel", "").lower():
            references[reference] = None
    is_indexable = not directives & {"noindex", "none"}
    if directives & {"nofollow", "none"}:
        return PageLinks((), is_indexable)
    joined = (_joined(base, reference) for reference in list(references)[:MAX_LINKS])
    urls = dict.fromkeys(link for link in joined if link is not None)
    return PageLinks(tuple(urls), is_indexable)


def _attributes(text: str) -> dict[str, str]:
    return {
        name.lower(): html.unescape(double or single or bare)
        for name, double, single, bare in _ATTRIBUTE.findall(text)
    }


def _directives(text: str) -> set[str]:
    return {word.strip() for word in text.lower().split(",")}


def _joined(base: SiteURL, reference: str) -> SiteURL | None:
    try:
        return base.join(reference)
    except CrawlError:
        return None  # mailto:, javascript:, and what is no address at all
