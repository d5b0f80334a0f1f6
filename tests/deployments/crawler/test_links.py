import time

import pytest

from deployments.crawler.links import page_links
from deployments.crawler.site_url import SiteURL

URL = SiteURL.parse("https://example.com/docs/")


def links(text: str, robots_header: str = "") -> list[str]:
    return [str(url) for url in page_links(text, URL, robots_header=robots_header).urls]


def test_links_are_found_once_in_their_order() -> None:
    text = """<A HREF='b'>1</A> <a class="x" href = "a?x=1&amp;y=2#z">2</a> <area href=/c>
      <a href="b">again</a> <a href="mailto:a@b.example">3</a> <a href="javascript:x()">4</a>"""
    assert links(text) == [
        "https://example.com/docs/b",
        "https://example.com/docs/a?x=1&y=2",
        "https://example.com/c",
    ]


def test_comments_and_scripts_have_no_links() -> None:
    assert links('<!-- <a href="x"> --><script>"<a href=y>"</script><a href="z">') == [
        "https://example.com/docs/z"
    ]


def test_the_base_is_what_links_are_relative_to() -> None:
    assert links('<base href="/other/"><a href="x">') == ["https://example.com/other/x"]


@pytest.mark.parametrize(
    ("text", "header", "num_links", "is_indexable"),
    [
        ('<a href="x">', "", 1, True),
        ('<a rel="external nofollow" href="x">', "", 0, True),
        ('<meta name="robots" content="noindex"><a href="x">', "", 1, False),
        ('<meta name=robots content="NoIndex, NoFollow"><a href="x">', "", 0, False),
        ('<meta name="robots" content="none"><a href="x">', "", 0, False),
        ('<a href="x">', "noindex, nofollow", 0, False),
        ('<meta name="description" content="noindex"><a href="x">', "", 1, True),
    ],
)
def test_what_a_page_asks_of_crawlers_is_done(
    text: str, header: str, num_links: int, is_indexable: bool
) -> None:
    found = page_links(text, URL, robots_header=header)
    assert (len(found.urls), found.is_indexable) == (num_links, is_indexable)


@pytest.mark.parametrize(
    "text", ["<a ", "<!--", "<script>", '<a href="', "<a " + "href=" * 800 + ">", "<a href='" * 9]
)
def test_a_page_that_is_made_to_keep_a_reader_busy_does_not(text: str) -> None:
    started = time.process_time()
    page_links(text * (4_000_000 // len(text)), URL)
    assert time.process_time() - started < 5
