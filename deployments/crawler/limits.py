"""How much a crawl may cost, us and the site."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CrawlLimits:
    """Defaults suit the documentation of a product; no field is about what is allowed."""

    max_pages: int = 500
    max_depth: int = 5  # links from the first page
    max_page_bytes: int = 20 * 2**20  # unpacked
    max_total_bytes: int = 500 * 2**20
    max_redirects: int = 5
    timeout_s: float = 1800.0  # for everything
    request_timeout_s: float = 30.0  # for one page, to its last byte
    num_connections: int = 4
    max_crawl_delay_s: float = 10.0  # a longer one that robots.txt asks for is cut to this

    @property
    def max_requests(self) -> int:
        """Pages that fail count too: a site may have no end of them."""
        return self.max_pages * 4
