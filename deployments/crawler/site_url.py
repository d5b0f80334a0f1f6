"""Web addresses in one spelling, what belongs to a site, and what a page is called as an object.

A site is a host with or without `www.`, on one port; http and https on their default ports are the
same site.
"""

import hashlib
import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Self
from urllib.parse import quote, unquote, urljoin, urlsplit

from deployments.crawler.errors import CrawlError

MAX_URL_CHARS = 2000
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_KEY_BYTES = 1024
_MAX_SEGMENT_BYTES = 200  # with room for a suffix: file systems allow 255
_UNSAFE_IN_KEYS = re.compile(r"[^\w.~@+,=()-]")
_ENDINGS = {
    "text/html": ".html",
    "application/xhtml+xml": ".html",
    "text/plain": ".txt",
    "text/markdown": ".md",
    "text/csv": ".csv",
    "application/json": ".json",
    "application/pdf": ".pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": ".docx",
    "application/vnd.openxmlformats-officedocument.presentationml.presentation": ".pptx",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": ".xlsx",
}
#: What is worth fetching.
CONTENT_TYPES = frozenset(_ENDINGS)
_KEPT_ENDINGS = frozenset([*_ENDINGS.values(), ".htm", ".markdown", ".jsonl", ".tsv", ".xhtml"])


@dataclass(frozen=True, slots=True)
class SiteURL:
    """An http or https address, in one spelling, without fragment, user and password."""

    scheme: str
    host: str  # in ASCII; an IPv6 address has no brackets
    port: int
    path: str  # at least "/"
    query: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """
        Raises:
            CrawlError: it is no web address; says why.
        """
        try:
            parts = urlsplit(text.strip())
            host, port = parts.hostname or "", parts.port
            host = _ascii_host(host)
        except ValueError as error:
            raise CrawlError(f"{text[:200]!r} is not a web address: {error}.") from error
        if len(text) > MAX_URL_CHARS:
            raise CrawlError(f"The address has more than {MAX_URL_CHARS} characters.")
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise CrawlError(f"{text[:200]!r} is not an http or https address.")
        if parts.username is not None or parts.password is not None:
            raise CrawlError("An address with a user name or password in it is not crawled.")
        return cls(
            scheme=parts.scheme,
            host=host,
            port=_DEFAULT_PORTS[parts.scheme] if port is None else port,
            path=_normal_path(parts.path),
            query=quote(unquote_safely(parts.query), safe="=&+,;:@!$'()*/?%-._~"),
        )

    def join(self, reference: str) -> Self:
        """What a link on this page leads to. Raises as `parse` does."""
        try:
            return type(self).parse(urljoin(str(self), reference.strip()))
        except ValueError as error:
            raise CrawlError(f"{reference[:200]!r} is not a link: {error}.") from error

    @property
    def authority(self) -> str:
        """Host and port as they are written; the default port is not."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def origin(self) -> str:
        return f"{self.scheme}://{self.authority}"

    @property
    def target(self) -> str:
        """What is asked for on the host."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def site(self) -> tuple[str, int]:
        """Equal for all pages of a site."""
        is_default = self.port == _DEFAULT_PORTS[self.scheme]
        return self.host.removeprefix("www."), 0 if is_default else self.port

    @property
    def identity(self) -> tuple[str, int, str]:
        """Equal for the same page of the same site, with or without TLS and `www.`."""
        return (*self.site, self.target)

    def __str__(self) -> str:
        return self.origin + self.target


def object_key(url: SiteURL, content_type: str) -> str:
    """What a page is called in a bucket: host, path, and an ending that fits what it is.

    The same for the same address. `/docs` and `/docs/` are `docs/index.html`, so that no page is
    in the way of those below it. What the name cannot hold, such as a query, becomes a hash.
    """
    given = [segment for segment in unquote(url.path).split("/") if segment.strip(".")]
    segments = [_safe(segment) for segment in given]
    is_exact = segments == given and not url.query
    has_name = bool(segments) and not url.path.endswith("/")
    if not has_name or PurePosixPath(segments[-1].lower()).suffix not in _KEPT_ENDINGS:
        segments.append("index" + _ENDINGS.get(content_type, ".html"))
    host, port = url.site
    key = "/".join([_safe(f"{host}-{port}" if port else host), *segments])
    if is_exact and len(key.encode()) <= _MAX_KEY_BYTES:
        return key
    digest = hashlib.sha256(str(url).encode()).hexdigest()[:12]
    stem, _, ending = key.rpartition(".")
    stem = stem.encode()[: _MAX_KEY_BYTES - 64].decode(errors="ignore").rstrip("/")
    return f"{stem}-{digest}.{ending}"


def unquote_safely(text: str) -> str:
    """Percent signs that encode nothing become `%25`; the rest stays encoded, in capitals."""
    return re.sub(
        r"%([0-9A-Fa-f]{2})?",
        lambda match: f"%{match[1].upper()}" if match[1] else "%25",
        text,
    )


def _normal_path(path: str) -> str:
    """Without `.` and `..`, and with what must be encoded."""
    kept: list[str] = []
    ends_in_folder = False
    for segment in path.split("/")[1:]:
        plain = segment.lower().replace("%2e", ".")
        ends_in_folder = plain in (".", "..")
        if plain == "..":
            del kept[-1:]
        elif plain != ".":
            kept.append(segment)
    if ends_in_folder:
        kept.append("")
    return "/" + quote(unquote_safely("/".join(kept)), safe="/=&+,;:@!$'()*%-._~")


def _ascii_host(host: str) -> str:
    host = host.rstrip(".").lower()
    if len(host) > 253:
        raise ValueError("its host is too long")
    if any(character.isspace() or character in "/\\@%" for character in host):
        raise ValueError("its host has characters that no host has")
    return host if host.isascii() else host.encode("idna").decode("ascii")


def _safe(segment: str) -> str:
    safe = _UNSAFE_IN_KEYS.sub("_", segment)
    return safe.encode()[:_MAX_SEGMENT_BYTES].decode(errors="ignore")
