"""A crawl of one site: from a page to the pages that it links to, and theirs, within limits.

    crawl = Crawl("https://docs.example.com/", allowed_networks=())
    async with aclosing(crawl.pages()) as pages:
        async for page in pages: ...

robots.txt is followed, a crawl delay kept, each page fetched once. Pages that fail are told and do
not end the crawl; if the first one does, there is none.
"""

import asyncio
import http
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import Any

from deployments.crawler.errors import AddressRefusedError, CrawlError
from deployments.crawler.fetch import Fetcher, Response, status_text
from deployments.crawler.guarded_network import GuardedNetwork, Resolve, resolve_with_system
from deployments.crawler.limits import CrawlLimits
from deployments.crawler.links import page_links
from deployments.crawler.network_policy import NetworkPolicy
from deployments.crawler.robots import MAX_ROBOTS_BYTES, RobotsRules
from deployments.crawler.site_url import CONTENT_TYPES, SiteURL, object_key
from models.documents.text_encoding import WEB_ENCODINGS

_HTML_TYPES = ("text/html", "application/xhtml+xml")
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawledPage:
    """A page as it may be stored. Text whose encoding only the HTTP header told is UTF-8 now."""

    url: str  # after redirects
    key: str  # what it could be called in a bucket
    content_type: str
    data: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedPage:
    """A page that could not be had, and why."""

    url: str
    reason: str


class _DisallowedError(CrawlError):
    """robots.txt closes the page to us: nothing that failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fetched:
    url: SiteURL  # after redirects
    page: CrawledPage | None  # None: not to be stored
    links: tuple[SiteURL, ...] = ()


@dataclass(frozen=True, slots=True)
class _Wanted:
    url: SiteURL
    depth: int


@dataclass(slots=True)
class _Progress:
    """What has been found and done."""

    frontier: deque[_Wanted]
    seen: set[tuple[str, int, str]]  # identities of pages
    keys: set[str] = field(default_factory=set)
    num_pages: int = 0
    num_bytes: int = 0
    num_requests: int = 0


class Crawl:
    """Crawls once."""

    def __init__(
        self,
        start_url: str,
        *,
        allowed_networks: Sequence[str] = (),
        limits: CrawlLimits | None = None,
        resolve: Resolve = resolve_with_system,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        """`allowed_networks`: those of the operator's, beside the public internet.

        Raises:
            CrawlError: the address is none that can be crawled.
            ValueError: one of the networks is none.
        """
        self._start = SiteURL.parse(start_url)
        self._limits = limits or CrawlLimits()
        self._network = GuardedNetwork(NetworkPolicy(allowed_networks), resolve)
        self._ssl_context = ssl_context
        self._robots: dict[str, asyncio.Task[RobotsRules]] = {}
        self._next_request_s = 0.0
        #: Which limit has ended the crawl before the site did; empty if none.
        self.stopped_by = ""

    async def pages(self) -> AsyncGenerator[CrawledPage | FailedPage, None]:
        """Pages as they come. Close it when it is not read to its end.

        Raises:
            CrawlError: the first page cannot be had.
        """
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + self._limits.timeout_s
        progress = _Progress(frontier=deque([_Wanted(self._start, 0)]), seen={self._start.identity})
        running: dict[asyncio.Task[_Fetched], _Wanted] = {}
        async with Fetcher(self._network, self._limits, ssl_context=self._ssl_context) as fetcher:
            try:
                while running or self._may_go_on(progress):
                    self._start_requests(fetcher, progress, running)
                    done, _ = await asyncio.wait(
                        running,
                        timeout=max(0.0, deadline_s - clock()),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    if not done:
                        self.stopped_by = f"the time limit of {self._limits.timeout_s:g} s"
                        break
                    for task in done:
                        item = self._finish(task, running.pop(task), progress)
                        if item is not None:
                            yield item
            finally:
                await _cancel([*running, *self._robots.values()])
        if not progress.num_pages:
            raise CrawlError(f"{self._start}: nothing came before {self.stopped_by}.")

    def _may_go_on(self, progress: _Progress) -> bool:
        """Whether there is another page to fetch; notes the limit that forbids it."""
        if not progress.frontier:
            return False
        limits = self._limits
        for is_reached, name in (
            (progress.num_pages >= limits.max_pages, f"{limits.max_pages} pages"),
            (progress.num_requests >= limits.max_requests, f"{limits.max_requests} requests"),
            (progress.num_bytes >= limits.max_total_bytes, f"{limits.max_total_bytes:,} bytes"),
        ):
            if is_reached:
                self.stopped_by = f"the limit of {name}"
                return False
        return True

    def _start_requests(
        self,
        fetcher: Fetcher,
        progress: _Progress,
        running: dict[asyncio.Task[_Fetched], _Wanted],
    ) -> None:
        while (
            len(running) < self._limits.num_connections
            and progress.num_pages + len(running) < self._limits.max_pages
            and self._may_go_on(progress)
        ):
            wanted = progress.frontier.popleft()
            progress.num_requests += 1
            running[asyncio.create_task(self._fetch(fetcher, wanted.url))] = wanted

    def _finish(
        self, task: asyncio.Task[_Fetched], wanted: _Wanted, progress: _Progress
    ) -> CrawledPage | FailedPage | None:
        """Take the page's links, and the page if it is to be told."""
        is_first = wanted.depth == 0
        try:
            fetched = task.result()
        except CrawlError as error:
            if is_first:
                raise
            if isinstance(error, _DisallowedError):
                return None
            return FailedPage(url=str(wanted.url), reason=str(error))
        page, identity = fetched.page, fetched.url.identity
        if identity != wanted.url.identity:
            if identity in progress.seen:
                return None  # it has been fetched by its own address, or will be
            progress.seen.add(identity)
        if is_first and page is None:
            raise CrawlError(f"{fetched.url} asks not to be indexed.")
        if wanted.depth < self._limits.max_depth:
            self._note_links(fetched.links, wanted.depth + 1, progress)
        if page is None or page.key in progress.keys:
            return None
        progress.keys.add(page.key)
        progress.num_pages += 1
        progress.num_bytes += len(page.data)
        return page

    def _note_links(self, links: Sequence[SiteURL], depth: int, progress: _Progress) -> None:
        for link in links:
            if len(progress.frontier) >= self._limits.max_requests:
                return
            if link.site == self._start.site and link.identity not in progress.seen:
                progress.seen.add(link.identity)
                progress.frontier.append(_Wanted(link, depth))

    async def _fetch(self, fetcher: Fetcher, url: SiteURL) -> _Fetched:
        is_start = url == self._start

        async def check(target: SiteURL) -> None:
            if target.site != self._start.site:
                raise CrawlError(f"{url} leads to {target}, which is another site.")
            await self._await_turn(fetcher, target)

        def is_wanted(content_type: str) -> bool:
            return not content_type or content_type in CONTENT_TYPES

        await self._await_turn(fetcher, url)
        response = await fetcher.get(url, check_redirect=check, wants_body=is_wanted)
        if response.status != http.HTTPStatus.OK:
            raise CrawlError(f"{response.url} answers {status_text(response.status)}.")
        if not is_wanted(response.content_type):
            if is_start:
                raise CrawlError(f"{url} is {response.content_type[:80]}, which is not read.")
            return _Fetched(url=response.url, page=None)
        return await asyncio.to_thread(_understood, response)

    async def _await_turn(self, fetcher: Fetcher, url: SiteURL) -> None:
        """Until the site may be asked for the page.

        Raises:
            CrawlError: it may not.
        """
        rules = await self._rules(fetcher, url)
        if not rules.allows(url.target):
            raise _DisallowedError(f"{url} is closed to crawlers by its site's robots.txt.")
        delay_s = min(rules.crawl_delay_s, self._limits.max_crawl_delay_s)
        if delay_s:
            now_s = asyncio.get_running_loop().time()
            turn_s = max(now_s, self._next_request_s)
            self._next_request_s = turn_s + delay_s
            await asyncio.sleep(turn_s - now_s)

    async def _rules(self, fetcher: Fetcher, url: SiteURL) -> RobotsRules:
        """What the page's host asks for; asked once per host."""
        task = self._robots.get(url.origin)
        if task is None:
            task = asyncio.create_task(_robots_rules(fetcher, url))
            self._robots[url.origin] = task
        return await asyncio.shield(task)


async def _robots_rules(fetcher: Fetcher, url: SiteURL) -> RobotsRules:
    """RFC 9309, 2.3.1: what is not there allows everything, what cannot be reached nothing."""

    async def check(target: SiteURL) -> None:
        """It may be on another host; its address is checked as all are."""

    robots_url = url.join("/robots.txt")
    try:
        response = await fetcher.get(
            robots_url,
            check_redirect=check,
            wants_body=lambda content_type: True,
            cut_at_bytes=MAX_ROBOTS_BYTES,
        )
    except AddressRefusedError:
        raise
    except CrawlError as error:
        raise CrawlError(f"Nothing is crawled without the site's robots.txt. {error}") from error
    if response.status == http.HTTPStatus.OK:
        return RobotsRules.parse(response.body.decode("utf-8", errors="replace"))
    if response.status >= http.HTTPStatus.INTERNAL_SERVER_ERROR:
        raise CrawlError(
            f"Nothing is crawled without the site's robots.txt: {robots_url} answers "
            f"{status_text(response.status)}."
        )
    return RobotsRules.allow_all()


def _understood(response: Response) -> _Fetched:
    """A page with its links."""
    url, data = response.url, response.body
    content_type = response.content_type or _guessed_type(data)
    codec = WEB_ENCODINGS.get(response.charset, "")
    if codec and content_type.startswith("text/") and not data.startswith(_BYTE_ORDER_MARKS):
        data = _as_utf8(data, codec)
    links: tuple[SiteURL, ...] = ()
    is_indexable = "noindex" not in response.robots_header.lower()
    if content_type in _HTML_TYPES:
        found = page_links(
            data.decode("utf-8", errors="replace"), url, robots_header=response.robots_header
        )
        links, is_indexable = found.urls, found.is_indexable
    page = CrawledPage(
        url=str(url), key=object_key(url, content_type), content_type=content_type, data=data
    )
    return _Fetched(url=url, page=page if is_indexable else None, links=links)


def _as_utf8(data: bytes, codec: str) -> bytes:
    """Marked as such, for nobody who reads the object later sees the header that told. UTF-8 that
    is valid stays as it is."""
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return data  # the header is wrong
    return data if codec == "utf-8" or text.isascii() else b"\xef\xbb\xbf" + text.encode()


def _guessed_type(data: bytes) -> str:
    if data.startswith(b"%PDF-"):
        return "application/pdf"
    return "text/html" if data.lstrip()[:1] == b"<" else "text/plain"


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
