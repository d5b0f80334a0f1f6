import pytest

from deployments.crawler.errors import CrawlError
from deployments.crawler.site_url import SiteURL, object_key


@pytest.mark.parametrize(
    ("given", "normal"),
    [
        ("HTTPS://Example.COM", "https://example.com/"),
        ("http://example.com:80/a#part", "http://example.com/a"),
        ("https://example.com:8443/a", "https://example.com:8443/a"),
        ("https://example.com/a/./b/../c/", "https://example.com/a/c/"),
        ("https://example.com/../../a", "https://example.com/a"),
        ("https://example.com/a/%2e%2E/b", "https://example.com/b"),
        ("https://example.com/a/..", "https://example.com/"),
        ("https://example.com/ü x", "https://example.com/%C3%BC%20x"),
        ("https://example.com/%c3%bc", "https://example.com/%C3%BC"),
        ("https://example.com/100%", "https://example.com/100%25"),
        ("https://example.com/?q=a b&c=%20", "https://example.com/?q=a%20b&c=%20"),
        ("https://bücher.example./", "https://xn--bcher-kva.example/"),
        (" https://example.com/a\n", "https://example.com/a"),
        ("http://[2606:4700::1111]/", "http://[2606:4700::1111]/"),
    ],
)
def test_an_address_has_one_spelling(given: str, normal: str) -> None:
    assert str(SiteURL.parse(given)) == normal
    assert str(SiteURL.parse(normal)) == normal


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ("ftp://example.com/", "not an http or https address"),
        ("file:///etc/passwd", "not an http or https address"),
        ("javascript:alert(1)", "not an http or https address"),
        ("example.com", "not an http or https address"),
        ("http://", "not an http or https address"),
        ("http://user:pass@example.com/", "user name or password"),
        ("http://example.com:99999/", "not a web address"),
        ("http://[::1/", "not a web address"),
        ("http://exa mple.com/", "characters that no host has"),
        ("http://a%00b/", "characters that no host has"),
        ("http://" + "a" * 300 + ".com/", "host is too long"),
        ("http://example.com/" + "a" * 3000, "more than 2000 characters"),
    ],
)
def test_what_is_no_web_address_is_refused(given: str, reason: str) -> None:
    with pytest.raises(CrawlError, match=reason):
        SiteURL.parse(given)


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("next", "https://example.com/docs/next"),
        ("/top#x", "https://example.com/top"),
        ("../a", "https://example.com/a"),
        ("?page=2", "https://example.com/docs/first?page=2"),
        ("//other.example/x", "https://other.example/x"),
        ("", "https://example.com/docs/first"),
    ],
)
def test_links_lead_where_a_browser_would_go(reference: str, target: str) -> None:
    assert str(SiteURL.parse("https://example.com/docs/first").join(reference)) == target


def test_a_site_is_a_host_with_or_without_www() -> None:
    start = SiteURL.parse("https://example.com/")
    assert SiteURL.parse("http://www.example.com/a").site == start.site
    assert SiteURL.parse("https://docs.example.com/").site != start.site
    assert SiteURL.parse("https://example.com:8443/").site != start.site
    assert SiteURL.parse("https://example.com.evil.example/").site != start.site
    assert SiteURL.parse("http://www.example.com/a").identity == start.join("/a").identity


@pytest.mark.parametrize(
    ("url", "content_type", "key"),
    [
        ("https://example.com/", "text/html", "example.com/index.html"),
        ("https://www.example.com/docs", "text/html", "example.com/docs/index.html"),
        ("https://example.com/docs/", "text/html", "example.com/docs/index.html"),
        ("https://example.com/docs/a.html", "text/html", "example.com/docs/a.html"),
        ("https://example.com/v1.2", "text/html", "example.com/v1.2/index.html"),
        ("https://example.com/a.php", "text/html", "example.com/a.php/index.html"),
        ("https://example.com/paper.pdf", "application/pdf", "example.com/paper.pdf"),
        ("https://example.com/paper", "application/pdf", "example.com/paper/index.pdf"),
        ("https://example.com/%C3%BCber", "text/plain", "example.com/über/index.txt"),
        ("https://example.com:8443/a.md", "text/markdown", "example.com-8443/a.md"),
        ("https://example.com//a//b.md", "text/markdown", "example.com/a/b.md"),
    ],
)
def test_a_page_is_called_by_its_path(url: str, content_type: str, key: str) -> None:
    assert object_key(SiteURL.parse(url), content_type) == key


def test_what_a_name_cannot_hold_becomes_a_hash() -> None:
    keys = {
        object_key(SiteURL.parse(f"https://example.com/{rest}"), "text/html")
        for rest in ("a.html?x=1", "a.html?x=2", "a.html", "a%00.html", "a%0A.html", "b" * 500)
    }
    assert len(keys) == 6
    for key in keys:
        assert key.startswith("example.com/")
        assert key.endswith(".html")
        assert all(0 < len(part.encode()) <= 255 for part in key.split("/"))
        assert key.isprintable()
    deep = SiteURL.parse("https://example.com/" + "ab/" * 600)
    assert len(object_key(deep, "text/html").encode()) <= 1024


@pytest.mark.parametrize("path", ["%2e%2e/%2e%2e/etc/passwd", "..%2f..%2fetc", "a/%2e./b"])
def test_no_name_leads_out_of_its_folder(path: str) -> None:
    key = object_key(SiteURL.parse(f"https://example.com/{path}"), "text/html")
    assert ".." not in key.split("/")
    assert key.startswith("example.com/")
