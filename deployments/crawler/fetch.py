"""One page: requests and redirects within the rules, and a body of bounded size.

No cookies, no proxies, no credentials. Every hop is a new connection that is checked, or one that
has been.
"""

import asyncio
import http
import ssl
import zlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpcore

from deployments.crawler.errors import CrawlError
from deployments.crawler.guarded_network import GuardedNetwork
from deployments.crawler.limits import CrawlLimits
from deployments.crawler.robots import USER_AGENT
from deployments.crawler.site_url import SiteURL

_ACCEPT = "text/html,application/xhtml+xml,text/plain,application/pdf;q=0.9,*/*;q=0.5"
_KEEPALIVE_S = 15.0
_REDIRECTS = (301, 302, 303, 307, 308)
_OUTPUT_STEP_BYTES = 2**18


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An answer that is no redirect."""

    url: SiteURL  # after redirects
    status: int
    content_type: str  # in lower case, without parameters; empty if the server does not say
    charset: str
    robots_header: str
    body: bytes  # unpacked; empty where it was not wanted


class Fetcher:
    """A pool of checked connections. An asynchronous context manager."""

    def __init__(
        self,
        network: GuardedNetwork,
        limits: CrawlLimits,
        *,
        ssl_context: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=ssl_context or ssl.create_default_context(),
            max_connections=limits.num_connections,
            keepalive_expiry=_KEEPALIVE_S,
            network_backend=network,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.aclose()

    async def get(
        self,
        url: SiteURL,
        *,
        check_redirect: Callable[[SiteURL], Awaitable[None]],
        wants_body: Callable[[str], bool],
        cut_at_bytes: int | None = None,
    ) -> Response:
        """The page, after redirects; `check_redirect` raises for one that is not to be followed.

        The body is read if the answer is a 200 and `wants_body` of its content type; no more of it
        than `cut_at_bytes`.

        Raises:
            CrawlError: it cannot be had, is too large or takes too long; names the page.
        """
        for _ in range(self._limits.max_redirects + 1):
            try:
                async with asyncio.timeout(self._limits.request_timeout_s):
                    response, location = await self._get_once(url, wants_body, cut_at_bytes)
            except TimeoutError as error:
                timeout_s = self._limits.request_timeout_s
                raise CrawlError(f"{url} takes longer than {timeout_s:g} s.") from error
            except httpcore.TimeoutException as error:
                raise CrawlError(f"{url} does not answer.") from error
            except (httpcore.NetworkError, httpcore.ProtocolError, ssl.SSLError) as error:
                reason = str(error) or type(error).__name__
                raise CrawlError(f"{url} cannot be reached: {reason}.") from error
            if not location:
                return response
            url = url.join(location)
            await check_redirect(url)
        raise CrawlError(f"More than {self._limits.max_redirects} redirects lead to {url}.")

    async def _get_once(
        self, url: SiteURL, wants_body: Callable[[str], bool], cut_at_bytes: int | None
    ) -> tuple[Response, str]:
        """An answer, and where it leads; empty if it is no redirect."""
        headers: list[tuple[bytes | str, bytes | str]] = [
            ("User-Agent", USER_AGENT),
            ("Accept", _ACCEPT),
            ("Accept-Encoding", "gzip, deflate"),
        ]
        timeout_s = self._limits.request_timeout_s
        steps = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)
        request_url = httpcore.URL(
            scheme=url.scheme, host=url.host, port=url.port, target=url.target
        )
        async with self._pool.stream(
            "GET", request_url, headers=headers, extensions={"timeout": steps}
        ) as answer:
            fields = _fields(answer.headers)
            content_type, charset = _content_type(fields.get("content-type", ""))
            location = fields.get("location", "") if answer.status in _REDIRECTS else ""
            body = b""
            if answer.status == http.HTTPStatus.OK and wants_body(content_type):
                unpack = _unpacker(fields.get("content-encoding", ""), url)
                limit = cut_at_bytes or self._limits.max_page_bytes
                try:
                    body = await _read_body(answer, unpack, limit, is_cut=cut_at_bytes is not None)
                except _TooLargeError as error:
                    raise CrawlError(f"{url} has more than {limit:,} bytes.") from error
                except zlib.error as error:
                    raise CrawlError(f"{url} is not packed as it says: {error}.") from error
            response = Response(
                url=url,
                status=answer.status,
                content_type=content_type,
                charset=charset,
                robots_header=fields.get("x-robots-tag", ""),
                body=body,
            )
            return response, location


def status_text(status: int) -> str:
    """`404 Not Found`."""
    try:
        return f"{status} {http.HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)


def _fields(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for name, value in headers:
        fields.setdefault(name.decode("latin-1").lower(), value.decode("latin-1").strip())
    return fields


def _content_type(value: str) -> tuple[str, str]:
    kind, _, rest = value.lower().partition(";")
    _, _, charset = rest.partition("charset=")
    return kind.strip(), charset.partition(";")[0].strip(" \"'")


class _TooLargeError(Exception):
    """There is more than is read."""


def _unpacker(encoding: str, url: SiteURL) -> "zlib._Decompress | None":
    if encoding.lower() in ("", "identity"):
        return None
    if encoding.lower() in ("gzip", "x-gzip", "deflate"):
        return zlib.decompressobj(wbits=47)  # either
    raise CrawlError(f"{url} is packed as {encoding[:40]!r}, which was not asked for.")


async def _read_body(
    answer: httpcore.Response, unpack: "zlib._Decompress | None", limit: int, *, is_cut: bool
) -> bytes:
    """Unpacked step by step, so that little that unpacks to much is noticed early."""
    body = bytearray()
    async for piece in answer.aiter_stream():
        rest = piece
        while rest:
            if unpack is None:
                body += rest
                rest = b""
            else:
                body += unpack.decompress(rest, _OUTPUT_STEP_BYTES)
                rest = unpack.unconsumed_tail
            if len(body) > limit:
                if is_cut:
                    return bytes(body[:limit])
                raise _TooLargeError
    return bytes(body)
