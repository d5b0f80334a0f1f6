import pytest

from deployments.crawler.errors import AddressRefusedError
from deployments.crawler.network_policy import NetworkPolicy


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("0.0.0.0", "of this network"),
        ("0.1.2.3", "of this network"),
        ("10.0.0.1", "private"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.168.1.1", "private"),
        ("169.254.169.254", "link-local"),
        ("100.64.0.1", "CGNAT"),
        ("100.127.255.255", "CGNAT"),
        ("192.0.0.1", "private"),
        ("192.0.2.1", "private"),
        ("198.18.0.1", "private"),
        ("198.51.100.1", "private"),
        ("203.0.113.1", "private"),
        ("192.88.99.1", "6to4"),
        ("224.0.0.1", "multicast"),
        ("239.255.255.255", "multicast"),
        ("240.0.0.1", "private|reserved"),
        ("255.255.255.255", "private|reserved"),
        ("::", "IPv4 address in IPv6"),
        ("::1", "IPv4 address in IPv6"),
        ("::7f00:1", "IPv4 address in IPv6"),
        ("::ffff:127.0.0.1", "IPv4 address in IPv6"),
        ("::ffff:8.8.8.8", "IPv4 address in IPv6"),
        ("::ffff:0:127.0.0.1", "IPv4 address in IPv6"),
        ("64:ff9b::7f00:1", "NAT64"),
        ("64:ff9b:1::1", "NAT64"),
        ("2002:7f00:1::1", "6to4"),
        ("2001:0:1234::1", "Teredo"),
        ("2001:db8::1", "private"),
        ("fc00::1", "private"),
        ("fd12:3456::1", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%2", "link-local"),
        ("fec0::1", "site-local"),
        ("ff02::1", "multicast"),
        ("100::1", "private"),
        ("4000::1", "reserved"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str, kind: str) -> None:
    with pytest.raises(AddressRefusedError, match=kind) as caught:
        NetworkPolicy().check(address, 443, host="innocent.example")
    assert "innocent.example has an address" in str(caught.value)
    assert address not in str(caught.value)


@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "2a00:1450::1"])
@pytest.mark.parametrize("port", [80, 443])
def test_public_addresses_are_not(address: str, port: int) -> None:
    NetworkPolicy().check(address, port, host="public.example")


@pytest.mark.parametrize("port", [22, 25, 6379, 8080])
def test_only_the_ports_of_the_web_are_crawled(port: int) -> None:
    with pytest.raises(AddressRefusedError, match=f"public.example:{port}: only the ports 80 and"):
        NetworkPolicy().check("8.8.8.8", port, host="public.example")


def test_the_operator_may_allow_networks_with_all_their_ports() -> None:
    policy = NetworkPolicy(["10.1.0.0/16", "fd00::/8"])
    policy.check("10.1.2.3", 8080, host="wiki.internal")
    policy.check("fd00::1", 80, host="wiki.internal")
    with pytest.raises(AddressRefusedError):
        policy.check("10.2.0.1", 80, host="other.internal")


def test_what_is_no_network_is_refused() -> None:
    with pytest.raises(ValueError, match="wiki"):
        NetworkPolicy(["wiki.internal"])
