"""Which addresses may be connected to: public ones, and the networks that the operator allows.

Judged is an address, never a name: a name may point anywhere, and elsewhere the next time.
"""

import ipaddress
import logging
from collections.abc import Sequence

from deployments.crawler.errors import AddressRefusedError

logger = logging.getLogger(__name__)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PUBLIC_PORTS = (80, 443)

# What leads into a private network although it is not called private, or to another address.
_REFUSED_NETWORKS: tuple[tuple[Network, str], ...] = tuple(
    (ipaddress.ip_network(network), kind)
    for network, kind in (
        ("0.0.0.0/8", "of this network"),
        ("100.64.0.0/10", "shared by a provider's customers (CGNAT)"),
        ("192.88.99.0/24", "a 6to4 relay"),
        ("::/96", "an IPv4 address in IPv6"),
        ("::ffff:0:0/96", "an IPv4 address in IPv6"),
        ("::ffff:0:0:0/96", "an IPv4 address in IPv6"),
        ("64:ff9b::/96", "translated to IPv4 (NAT64)"),
        ("64:ff9b:1::/48", "translated to IPv4 (NAT64)"),
        ("2002::/16", "tunnelled to IPv4 (6to4)"),
        ("2001::/32", "tunnelled to IPv4 (Teredo)"),
        ("fec0::/10", "site-local"),
    )
)


class NetworkPolicy:
    """What one crawl may connect to."""

    def __init__(self, allowed_networks: Sequence[str] = ()) -> None:
        """`allowed_networks`: like "10.1.0.0/16"; in them every port is allowed too.

        Raises:
            ValueError: one of them is no network.
        """
        self._allowed = tuple(ipaddress.ip_network(network) for network in allowed_networks)

    def check(self, address: str, port: int, *, host: str) -> None:
        """
        Raises:
            AddressRefusedError: it is not to be connected to; names the host it was found for.
        """
        parsed = ipaddress.ip_address(address)
        if any(parsed in network for network in self._allowed):
            return
        kind = _refused_kind(parsed)
        if kind:
            # Who asks must not learn the addresses that names have inside of our network.
            logger.info("%s has the address %s, which is %s", host, address, kind)
            raise AddressRefusedError(f"{host} has an address that is {kind}.")
        if port not in PUBLIC_PORTS:
            raise AddressRefusedError(
                f"{host}:{port}: only the ports {' and '.join(map(str, PUBLIC_PORTS))} are crawled."
            )


def _refused_kind(address: Address) -> str:
    """What is wrong with an address; empty for a public one."""
    for network, kind in _REFUSED_NETWORKS:
        if address in network:
            return kind
    checks = (
        (address.is_loopback, "this machine's own (loopback)"),
        (address.is_link_local, "link-local"),
        (address.is_multicast, "for many receivers (multicast)"),
        (address.is_unspecified, "none (unspecified)"),
        (address.is_private, "private"),
        (address.is_reserved, "reserved"),
        (not address.is_global, "not public"),
    )
    return next((kind for is_so, kind in checks if is_so), "")
