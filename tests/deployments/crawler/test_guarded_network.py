"""No name, redirect, or second answer of a resolver leads a crawl to a private address."""

import asyncio
import datetime
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from deployments.crawler.crawl import Crawl, CrawledPage, FailedPage
from deployments.crawler.errors import CrawlError
from tests.deployments.crawler.site_server import Answer, Site, page, redirect, running


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running(Site()) as started:
        started.answers = {"/": page("/a"), "/a": page()}
        yield started


class FakeResolver:
    """Names and what they resolve to, one list of addresses after the other; the last stays."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self._answers = {name.replace("_", "."): lists for name, lists in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        lists = self._answers.get(host)
        if lists is None:
            raise OSError("unknown name")
        return lists.pop(0) if len(lists) > 1 else lists[0]


@pytest.mark.parametrize(
    "host",
    [
        *("127.0.0.1", "localhost", "2130706433", "0x7f000001", "0x7f.1", "127.1", "0177.0.0.1"),
        *("0", "[::1]", "[::ffff:127.0.0.1]", "[::]"),
    ],
)
async def test_this_machine_is_not_crawled_however_it_is_written(site: Site, host: str) -> None:
    with pytest.raises(CrawlError, match=r"has an address|no such host|cannot be reached"):
        await anext(Crawl(f"http://{host}:{site.port}/").pages())
    assert site.num_connections == 0


async def test_a_name_that_leads_to_a_private_address_is_refused(site: Site) -> None:
    resolve = FakeResolver(site_test=[["127.0.0.1"]])
    with pytest.raises(CrawlError, match=r"site\.test has an address.*loopback"):
        await anext(Crawl(f"http://site.test:{site.port}/", resolve=resolve).pages())
    assert site.num_connections == 0


async def test_one_private_address_among_public_ones_is_enough_to_refuse() -> None:
    resolve = FakeResolver(site_test=[["8.8.8.8", "10.0.0.1"]])
    with pytest.raises(CrawlError, match=r"site\.test has an address that is private"):
        await anext(Crawl("http://site.test/", resolve=resolve).pages())


async def test_a_name_that_changes_its_address_leads_nowhere_else(site: Site) -> None:
    """DNS rebinding: the first answer is allowed, the later ones are not."""
    inner = Site()
    inner.answers = dict(site.answers)
    server = await asyncio.start_server(inner.serve, "127.0.0.2", site.port)
    resolve = FakeResolver(site_test=[["127.0.0.1"], ["127.0.0.2"]])
    close = page("/a")
    close.headers = {"Connection": "close"}
    site.answers = {"/robots.txt": close, "/": close, "/a": page()}
    crawl = Crawl(
        f"http://site.test:{site.port}/", allowed_networks=["127.0.0.1/32"], resolve=resolve
    )
    async with server:
        with pytest.raises(CrawlError, match=r"site\.test has an address.*loopback"):
            async for _ in crawl.pages():
                pass
    assert resolve.asked == ["site.test", "site.test"]
    assert inner.num_connections == 0


async def test_the_name_is_resolved_once_for_a_connection_and_never_by_others(site: Site) -> None:
    resolve = FakeResolver(site_test=[["127.0.0.1"], ["10.0.0.1"]])
    site.answers["/robots.txt"] = Answer(b"", content_type="text/plain")
    crawl = Crawl(
        f"http://site.test:{site.port}/", allowed_networks=["127.0.0.1/32"], resolve=resolve
    )
    pages = [item async for item in crawl.pages()]
    assert len(pages) == 2
    assert resolve.asked == ["site.test"], "the connection is kept, and its address with it"
    assert site.requests[0].headers["host"] == f"site.test:{site.port}"


async def test_a_redirect_to_a_private_address_is_refused_when_it_connects(site: Site) -> None:
    """Within the site by its name, outside of what is allowed by its address."""
    inner = Site()
    server = await asyncio.start_server(inner.serve, "127.0.0.2", site.port)
    resolve = FakeResolver(site_test=[["127.0.0.1"]], www_site_test=[["127.0.0.2"]])
    site.answers = {
        "/": page("/a"),
        "/a": redirect(f"http://www.site.test:{site.port}/secret"),
    }
    crawl = Crawl(
        f"http://site.test:{site.port}/", allowed_networks=["127.0.0.1/32"], resolve=resolve
    )
    async with server:
        items = [item async for item in crawl.pages()]
    failed = [item for item in items if isinstance(item, FailedPage)]
    assert [("www.site.test has an address" in failure.reason) for failure in failed] == [True]
    assert inner.num_connections == 0


async def test_robots_txt_does_not_lead_there_either(site: Site) -> None:
    inner = Site()
    server = await asyncio.start_server(inner.serve, "127.0.0.2", site.port)
    site.answers["/robots.txt"] = redirect(f"http://127.0.0.2:{site.port}/latest/meta-data")
    crawl = Crawl(site.url, allowed_networks=["127.0.0.1/32"])
    async with server:
        with pytest.raises(CrawlError, match=r"127\.0\.0\.2"):
            await anext(crawl.pages())
    assert inner.num_connections == 0


async def test_another_address_is_tried_when_one_does_not_answer(site: Site) -> None:
    resolve = FakeResolver(site_test=[["127.0.0.3", "127.0.0.1"]])
    crawl = Crawl(
        f"http://site.test:{site.port}/", allowed_networks=["127.0.0.0/8"], resolve=resolve
    )
    assert isinstance(await anext(crawl.pages()), CrawledPage)


async def test_an_unknown_name_is_a_reason() -> None:
    with pytest.raises(CrawlError, match=r"no such host: site\.test"):
        await anext(Crawl("http://site.test/", resolve=FakeResolver()).pages())


async def test_proxies_of_the_environment_are_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(Site()) as proxy:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        crawl = Crawl(site.url, allowed_networks=["127.0.0.0/8"])
        assert isinstance(await anext(crawl.pages()), CrawledPage)
        assert proxy.num_connections == 0


def certificate(folder: Path, host: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for a name, and a client's that trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "key.pem").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    (folder / "cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    client = ssl.create_default_context(cafile=str(folder / "cert.pem"))
    return server, client


async def test_tls_is_made_with_the_name_and_its_certificate_checked(tmp_path: Path) -> None:
    server_context, client_context = certificate(tmp_path, "site.test")
    names: list[str | None] = []
    server_context.sni_callback = lambda _, name, __: names.append(name)
    resolve = FakeResolver(site_test=[["127.0.0.1"]], other_test=[["127.0.0.1"]])
    async with running(Site(), ssl_context=server_context) as site:
        site.answers = {"/": page()}

        def crawl(host: str, context: ssl.SSLContext | None) -> Crawl:
            return Crawl(
                f"https://{host}:{site.port}/",
                allowed_networks=["127.0.0.0/8"],
                resolve=resolve,
                ssl_context=context,
            )

        assert isinstance(await anext(crawl("site.test", client_context).pages()), CrawledPage)
        assert names[0] == "site.test"
        assert site.requests[0].headers["host"] == f"site.test:{site.port}"
        for host, context in (("other.test", client_context), ("site.test", None)):
            with pytest.raises(CrawlError, match=r"cannot be reached.*certificate"):
                await anext(crawl(host, context).pages())


def test_the_networks_are_checked_when_they_are_given() -> None:
    with pytest.raises(ValueError, match="does not appear to be an IPv4 or IPv6 network"):
        Crawl("http://example.com/", allowed_networks=["intranet"])
