"""Crawls of real servers: what is found, what is asked for, and where it ends."""

import asyncio
import gzip
import itertools
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from deployments.crawler.crawl import Crawl, CrawledPage, FailedPage
from deployments.crawler.errors import CrawlError
from deployments.crawler.limits import CrawlLimits
from tests.deployments.crawler.site_server import (
    ALLOWED,
    Answer,
    Request,
    Site,
    page,
    redirect,
    running,
)
from tests.stopped_clock import StoppedClock


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running(Site()) as started:
        yield started


async def crawl(
    site: Site, path: str = "/", *, limits: CrawlLimits | None = None
) -> tuple[list[str], list[FailedPage], str]:
    """Paths of the pages, failures, and which limit was reached."""
    crawl = Crawl(site.url + path, allowed_networks=ALLOWED, limits=limits)
    items = [item async for item in crawl.pages()]
    pages = [item for item in items if isinstance(item, CrawledPage)]
    paths = [item.url.removeprefix(site.url) for item in pages]
    return paths, [item for item in items if isinstance(item, FailedPage)], crawl.stopped_by


async def test_a_site_is_crawled_from_link_to_link_each_page_once(site: Site) -> None:
    site.answers = {
        "/": page("a", "/b#part", "a?", "mailto:x@y.example"),
        "/a": page("/", "/b", "/c/"),
        "/b": page("/a#again", "http://www.127.0.0.1/"),
        "/c/": page("d.pdf", "e.png"),
        "/c/d.pdf": Answer(b"%PDF-1.4", content_type="application/pdf"),
        "/c/e.png": Answer(b"image", content_type="image/png"),
    }
    paths, failed, stopped_by = await crawl(site)
    assert sorted(paths) == ["/", "/a", "/b", "/c/", "/c/d.pdf"]
    assert (failed, stopped_by) == ([], "")
    assert sorted(site.asked) == ["/", "/a", "/b", "/c/", "/c/d.pdf", "/c/e.png"]
    assert sum(request.target == "/robots.txt" for request in site.requests) == 1


async def test_pages_come_with_what_is_needed_to_store_them(site: Site) -> None:
    site.answers = {"/": page("/docs/a"), "/docs/a": page(text="deep")}
    crawl = Crawl(site.url, allowed_networks=ALLOWED)
    pages = [item async for item in crawl.pages() if isinstance(item, CrawledPage)]
    host = f"127.0.0.1-{site.port}"
    assert [(item.key, item.content_type) for item in pages] == [
        (f"{host}/index.html", "text/html"),
        (f"{host}/docs/a/index.html", "text/html"),
    ]
    assert b"deep" in pages[1].data


async def test_other_sites_are_not_asked(site: Site) -> None:
    async with running(Site()) as other:
        site.answers = {"/": page(f"{other.url}/x", "/moved"), "/moved": redirect(other.url + "/y")}
        paths, failed, _ = await crawl(site)
        assert paths == ["/"]
        assert [failure.url for failure in failed] == [f"{site.url}/moved"]
        assert "another site" in failed[0].reason
        assert other.num_connections == 0


async def test_we_say_who_we_are_and_bring_no_cookies(site: Site) -> None:
    answer = page("/a")
    answer.headers = {"Set-Cookie": "id=1; Path=/"}
    site.answers = {"/": answer, "/a": page()}
    await crawl(site)
    assert all(r.headers["user-agent"].startswith("ShoalCrawler/") for r in site.requests)
    assert all("cookie" not in request.headers for request in site.requests)
    assert all(r.headers["host"] == f"127.0.0.1:{site.port}" for r in site.requests)


async def test_links_are_followed_to_the_fifth_level(site: Site) -> None:
    site.answers = {f"/{n}": page(f"/{n + 1}") for n in range(10)}
    paths, _, _ = await crawl(site, "/0")
    assert paths == [f"/{n}" for n in range(6)]


async def test_endless_pages_end_at_the_limit(site: Site) -> None:
    async def anything(request: Request) -> Answer:
        number = int(request.target.rpartition("/")[2])
        return page(*(f"/page/{number * 10 + digit}" for digit in range(10)))

    site.answers = _Everything(anything)
    paths, _, stopped_by = await crawl(site, "/page/1", limits=CrawlLimits(max_pages=30))
    assert len(paths) == len(set(paths)) == 30
    assert stopped_by == "the limit of 30 pages"
    assert len(site.asked) <= 30 + 4


class _Everything(dict[str, Answer]):
    """Answers for every path but robots.txt."""

    def __init__(self, handler: object) -> None:
        super().__init__()
        self._handler = handler

    def get(self, key: str, default: object = None) -> object:  # type: ignore[override]
        return default if key == "/robots.txt" else self._handler


async def test_endless_failures_end_too(site: Site) -> None:
    site.answers = {"/": page(*(f"/missing/{n}" for n in range(200)))}
    limits = CrawlLimits(max_pages=10)
    paths, failed, stopped_by = await crawl(site, limits=limits)
    assert paths == ["/"]
    assert len(failed) == limits.max_requests - 1
    assert "404 Not Found" in failed[0].reason
    assert stopped_by == "the limit of 40 requests"


async def test_a_crawl_has_a_limit_of_bytes(site: Site) -> None:
    site.answers = {f"/{n}": page(f"/{n + 1}", text="x" * 1000) for n in range(5)}
    paths, _, stopped_by = await crawl(site, "/0", limits=CrawlLimits(max_total_bytes=2500))
    assert len(paths) == 3
    assert stopped_by == "the limit of 2,500 bytes"


async def test_a_crawl_has_a_limit_of_time(site: Site) -> None:
    is_asked, never = asyncio.Event(), asyncio.Event()

    async def hang(request: Request) -> Answer:
        is_asked.set()
        await never.wait()
        return page()

    site.answers = {"/": page("/slow"), "/slow": hang}
    with StoppedClock() as clock:
        crawling = asyncio.create_task(crawl(site, limits=CrawlLimits(timeout_s=0.5)))
        await is_asked.wait()
        clock.move_on(1)
        assert await crawling == (["/"], [], "the time limit of 0.5 s")
    site.answers = {"/": hang}
    with pytest.raises(CrawlError, match="nothing came before the time limit"):
        await crawl(site, limits=CrawlLimits(timeout_s=0.5))


async def test_redirects_are_followed_within_the_site(site: Site) -> None:
    site.answers = {
        "/": redirect("/start", 301),
        "/start": page("/old", "/start"),
        "/old": redirect("new", 308),
        "/new": page("/older"),
        "/older": redirect("/new"),
    }
    paths, failed, _ = await crawl(site)
    assert sorted(paths) == ["/new", "/start"]
    assert failed == []


async def test_redirects_in_a_circle_end(site: Site) -> None:
    site.answers = {"/": page("/a"), "/a": redirect("/b"), "/b": redirect("/a")}
    paths, (failure,), _ = await crawl(site)
    assert paths == ["/"]
    assert "More than 5 redirects" in failure.reason


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(b"", 404), r"answers 404 Not Found"),
        (Answer(b"", 500), r"answers 500 Internal Server Error"),
        (Answer(b"x", content_type="image/png"), "is image/png, which is not read"),
        (page(head='<meta name="robots" content="noindex">'), "asks not to be indexed"),
        (redirect("ftp://127.0.0.1/"), "not an http or https address"),
        (redirect("https://elsewhere.example/"), "which is another site"),
    ],
)
async def test_the_first_page_must_be_had(site: Site, answer: Answer, reason: str) -> None:
    site.answers = {"/": answer}
    with pytest.raises(CrawlError, match=reason):
        await crawl(site)


async def test_a_page_that_asks_not_to_be_indexed_is_not_but_its_links_are(site: Site) -> None:
    hidden = page("/c")
    hidden.headers = {"X-Robots-Tag": "noindex"}
    site.answers = {"/": page("/b"), "/b": hidden, "/c": page()}
    paths, failed, _ = await crawl(site)
    assert (paths, failed) == (["/", "/c"], [])


# robots.txt


async def test_robots_txt_is_followed(site: Site) -> None:
    site.answers = {
        "/robots.txt": Answer(b"User-agent: *\nDisallow: /private", content_type="text/plain"),
        "/": page("/private/a", "/public", "/jump"),
        "/public": page(),
        "/jump": redirect("/private/b"),
        "/private/a": page(),
        "/private/b": page(),
    }
    paths, failed, _ = await crawl(site)
    assert (sorted(paths), failed) == (["/", "/public"], [])
    assert not [target for target in site.asked if target.startswith("/private")]
    with pytest.raises(CrawlError, match=r"closed to crawlers by its site's robots\.txt"):
        await crawl(site, "/private/a")


async def test_a_robots_txt_that_cannot_be_had_forbids_everything(site: Site) -> None:
    site.answers = {"/": page(), "/robots.txt": Answer(b"", 503)}
    with pytest.raises(CrawlError, match=r"without the site's robots\.txt.*503 Service Unavail"):
        await crawl(site)
    assert site.asked == []


async def test_a_robots_txt_may_be_elsewhere_and_long(site: Site) -> None:
    rules = b"User-agent: *\nDisallow: /b\n" + b"# padding\n" * 100_000
    site.answers = {
        "/": page("/b"),
        "/b": page(),
        "/robots.txt": redirect("/rules"),
        "/rules": Answer(rules, content_type="text/plain"),
    }
    assert (await crawl(site))[0] == ["/"]


async def test_a_crawl_delay_is_kept_up_to_a_bound(site: Site) -> None:
    times: list[float] = []

    async def note(request: Request) -> Answer:
        times.append(asyncio.get_running_loop().time())
        return page("/a", "/b", "/c")

    site.answers = dict.fromkeys(("/", "/a", "/b", "/c"), note)
    site.answers["/robots.txt"] = Answer(b"User-agent: *\nCrawl-delay: 3600")
    paths, _, _ = await crawl(site, limits=CrawlLimits(max_crawl_delay_s=0.2))
    assert len(paths) == 4
    assert min(after - before for before, after in itertools.pairwise(times)) > 0.15


async def test_few_pages_are_fetched_at_a_time(site: Site) -> None:
    all_here = asyncio.Event()

    async def wait_for_others(request: Request) -> Answer:
        if site.num_open == 3:
            all_here.set()
        await all_here.wait()
        return page()

    links = [f"/{n}" for n in range(20)]
    site.answers = {"/": page(*links), **dict.fromkeys(links, wait_for_others)}
    paths, _, _ = await crawl(site, limits=CrawlLimits(num_connections=3))
    assert len(paths) == 21
    assert site.most_open == 3


# Servers that mean no good


async def endless(piece: bytes, *, pause: asyncio.Event | None = None) -> AsyncIterator[bytes]:
    while True:
        yield piece
        if pause is not None:
            await pause.wait()


async def test_a_body_without_an_end_is_given_up(site: Site) -> None:
    site.answers = {"/": page("/large"), "/large": Answer(endless(b"x" * 65_536))}
    paths, (failure,), _ = await crawl(site, limits=CrawlLimits(max_page_bytes=10**6))
    assert paths == ["/"]
    assert "has more than 1,000,000 bytes" in failure.reason


async def test_a_body_that_says_it_is_huge_is_not_read(site: Site) -> None:
    huge = Answer(b"x" * 3_000_000)
    site.answers = {"/": page("/large"), "/large": huge}
    _, (failure,), _ = await crawl(site, limits=CrawlLimits(max_page_bytes=10**6))
    assert "has more than 1,000,000 bytes" in failure.reason


async def test_a_page_that_drips_is_given_up(site: Site) -> None:
    never = asyncio.Event()
    site.answers = {"/": page("/slow"), "/slow": Answer(endless(b"x", pause=never))}
    with StoppedClock() as clock:
        crawling = asyncio.create_task(crawl(site, limits=CrawlLimits(request_timeout_s=0.3)))
        while "/slow" not in site.asked:  # noqa: ASYNC110 - it is, while time stands still
            await asyncio.sleep(0)
        await clock.pass_until(crawling.done)
        paths, (failure,), _ = await crawling
    assert paths == ["/"]
    assert "takes longer than 0.3 s" in failure.reason or "does not answer" in failure.reason


async def test_a_gzip_bomb_is_given_up_early(site: Site) -> None:
    bomb = Answer(gzip.compress(b"\0" * 200_000_000, 1), headers={"Content-Encoding": "gzip"})
    plain = page(text="packed")
    assert isinstance(plain.body, bytes)
    packed = Answer(gzip.compress(plain.body), headers={"Content-Encoding": "gzip"})
    site.answers = {
        "/": page("/bomb", "/packed", "/broken", "/strange"),
        "/bomb": bomb,
        "/packed": packed,
        "/broken": Answer(b"no gzip", headers={"Content-Encoding": "gzip"}),
        "/strange": Answer(b"x", headers={"Content-Encoding": "br"}),
    }
    paths, failed, _ = await crawl(site, limits=CrawlLimits(max_page_bytes=10**6))
    assert sorted(paths) == ["/", "/packed"]
    reasons = {failure.url.rpartition("/")[2]: failure.reason for failure in failed}
    assert "more than 1,000,000 bytes" in reasons["bomb"]
    assert "not packed as it says" in reasons["broken"]
    assert "packed as 'br'" in reasons["strange"]


async def test_an_answer_that_is_no_http_is_a_failure_of_that_page() -> None:
    async def rubbish(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        writer.close()

    server = await asyncio.start_server(rubbish, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(CrawlError, match="cannot be reached"):
            await anext(Crawl(f"http://127.0.0.1:{port}/", allowed_networks=ALLOWED).pages())
    with pytest.raises(CrawlError, match="cannot be reached"):
        await anext(Crawl(f"http://127.0.0.1:{port}/", allowed_networks=ALLOWED).pages())


# Encodings


@pytest.mark.parametrize(
    ("body", "content_type", "stored"),
    [
        ("Съешь".encode("cp1251"), "text/html; charset=windows-1251", "\ufeffСъешь".encode()),
        ("Größe".encode("latin-1"), 'text/plain; charset="ISO-8859-1"', "\ufeffGröße".encode()),
        ("Größe".encode(), "text/html; charset=utf-8", "Größe".encode()),
        (b"ascii", "text/html; charset=windows-1251", b"ascii"),
        (b"\xff", "text/html; charset=utf-8", b"\xff"),
    ],
)
async def test_an_encoding_that_only_the_header_tells_is_not_lost(
    site: Site, body: bytes, content_type: str, stored: bytes
) -> None:
    site.answers = {"/": Answer(body, content_type=content_type)}
    page = await anext(Crawl(site.url, allowed_networks=ALLOWED).pages())
    assert isinstance(page, CrawledPage)
    assert page.data == stored


async def test_a_page_without_a_type_is_what_it_looks_like(site: Site) -> None:
    site.answers = {
        "/": Answer(b"<p><a href=/b><a href=/c>", content_type=""),
        "/b": Answer(b"%PDF-1.4", content_type=""),
        "/c": Answer(b"text", content_type=""),
    }
    crawl = Crawl(site.url, allowed_networks=ALLOWED)
    kinds = {item.content_type async for item in crawl.pages() if isinstance(item, CrawledPage)}
    assert kinds == {"text/html", "application/pdf", "text/plain"}


async def test_who_stops_reading_ends_the_crawl(site: Site) -> None:
    never = asyncio.Event()
    is_cut = asyncio.Event()

    async def hang(request: Request) -> Answer:
        try:
            await never.wait()
        finally:
            is_cut.set()
        return page()

    site.answers = {"/": page("/a", "/b"), "/a": hang, "/b": page()}
    before = asyncio.all_tasks()
    async with aclosing(Crawl(site.url, allowed_networks=ALLOWED).pages()) as pages:
        await anext(pages)
        await anext(pages)
    ours = [task for task in asyncio.all_tasks() - before if "Crawl" in repr(task)]
    assert ours == []
