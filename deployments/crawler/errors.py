"""Why a page, or a whole crawl, came to nothing."""


class CrawlError(Exception):
    """The message is for whoever asked for the crawl: what was refused, or what went wrong."""


class AddressRefusedError(CrawlError):
    """A host's address, or its port, is none that a crawler may connect to."""
