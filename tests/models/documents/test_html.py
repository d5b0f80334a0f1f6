import io

import pytest

from models.documents.html import read_html

PAGE = """\
<!doctype html><html><head><title>Fish &amp; Co</title><meta name="description" content="meta">
<style>p {}</style></head><body><nav>Home | About</nav>
<h1>Prices</h1><p>One is <b>5 &lt; 6</b>, see <a href="/more">more</a>.</p>
<form action="/"><h2>Inside a form</h2><p>AT&amp;T's text.</p></form>
<script>alert("no")</script>
<table><tr><th>Name</th><th>Price</th></tr><tr><td>Cod</td><td>3</td></tr></table>
<ul><li>first</li><li>second</li></ul></body></html>
"""


def read(data: str | bytes) -> tuple[str, list[str]]:
    blocks = list(read_html(io.BytesIO(data.encode() if isinstance(data, str) else data)))
    return "".join(block.text for block in blocks), [block.heading for block in blocks]


def test_a_page_becomes_text_under_its_title_and_headings() -> None:
    text, headings = read(PAGE)
    assert "One is 5 < 6, see more." in text
    assert "AT&T's text." in text
    assert "| Cod | 3 |" in " ".join(text.split())
    assert "- first" in text
    assert headings[-2:] == ["Fish & Co > Prices", "Fish & Co > Prices > Inside a form"]


@pytest.mark.parametrize("unwanted", ["Home | About", "alert", "p {}", "meta", "title:", "/more"])
def test_what_is_not_content_is_left_out(unwanted: str) -> None:
    assert unwanted not in read(PAGE)[0]


@pytest.mark.parametrize(
    "declaration",
    [
        '<meta charset="windows-1251">',
        "<META http-equiv=content-type content='text/html; charset=Windows-1251'>",
    ],
)
def test_the_declared_encoding_is_believed(declaration: str) -> None:
    page = f"<html><head>{declaration}</head><body><p>Съешь булок</p></body></html>"
    assert "Съешь булок" in read(page.encode("cp1251"))[0]


def test_a_declaration_that_is_wrong_is_not() -> None:
    page = '<html><head><meta charset="shift_jis"></head><body><p>Größe</p></body></html>'
    assert "Größe" in read(page)[0]
    strange = '<html><head><meta charset="idna"></head><body><p>Größe</p></body></html>'
    assert "Größe" in read(strange)[0]


def test_a_page_without_head_and_body_has_its_title_too() -> None:
    text, headings = read("<!doctype html><title>Short</title><p>Text.</p>")
    assert (text.strip(), headings) == ("Text.", ["Short"])


def test_a_fragment_is_read() -> None:
    assert read("<p>Only <i>this</i>.</p>")[0].strip() == "Only this."


@pytest.mark.parametrize("page", ["<div>" * 100_000 + "x", "<title>" * 50_000, "<" * 500_000])
def test_pages_that_are_no_pages_do_no_harm(page: str) -> None:
    read(page)
