import pytest

from deployments.crawler.robots import RobotsRules


@pytest.mark.parametrize(
    ("text", "target", "is_allowed"),
    [
        ("", "/a", True),
        ("User-agent: *\nDisallow: /", "/a", False),
        ("User-agent: *\nDisallow:", "/a", True),
        ("user-agent:*\ndisallow:/private", "/private/x", False),
        ("User-agent: *\nDisallow: /private # comment", "/public", True),
        ("User-agent: Other\nDisallow: /", "/a", True),
        ("User-agent: ShoalCrawler/2\nDisallow: /a\nUser-agent: *\nDisallow: /", "/b", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: shoalcrawler\nAllow: /", "/b", True),
        ("User-agent: x\nUser-agent: shoalcrawler\nDisallow: /a", "/a", False),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a", "/a", True),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf", False),
        ("User-agent: *\nDisallow: /*.pdf$", "/x/y.pdf?z", True),
        ("User-agent: *\nDisallow: /a*b*c", "/aXbXXc", False),
        ("User-agent: *\nDisallow: /a*b*c", "/aXcXb", True),
        ("User-agent: *\nDisallow: /a$", "/ab", True),
        ("User-agent: *\nDisallow: /*?page=", "/list?page=3", False),
        ("\ufeffUser-agent: *\r\nDisallow: /a\r\n", "/a", False),
        ("Disallow: /\nrubbish\nUser-agent: *\nDisallow: /b", "/a", True),
    ],
)
def test_rules_are_read_as_rfc_9309_has_them(text: str, target: str, is_allowed: bool) -> None:
    assert RobotsRules.parse(text).allows(target) is is_allowed


@pytest.mark.parametrize(
    ("text", "delay_s"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: soon", 0),
        ("User-agent: *\nCrawl-delay: -3", 0),
        ("User-agent: other\nCrawl-delay: 9", 0),
        ("User-agent: *\nCrawl-delay: nan", 0),
    ],
)
def test_a_crawl_delay_is_kept(text: str, delay_s: float) -> None:
    assert RobotsRules.parse(text).crawl_delay_s == delay_s


def test_a_rule_of_many_stars_takes_no_time() -> None:
    rules = RobotsRules.parse("User-agent: *\nDisallow: /" + "*a" * 200 + "$")
    assert rules.allows("/" + "a" * 1999 + "b")
