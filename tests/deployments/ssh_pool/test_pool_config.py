"""Mistakes in the section `provider`, by name."""

from typing import Any

import pytest

from deployments.ssh_pool.pool_config import PoolConfig, PoolConfigError


def section(**changes: Any) -> dict[str, Any]:
    return {
        "type": "external",
        "module": "deployments.ssh_pool.provider.SSHPool",
        "head_host": "10.0.0.2",
        "hosts": {"gpu": ["10.0.0.3", "10.0.0.4"], "cpu": ["10.0.0.3"]},
        **changes,
    }


def test_hosts_are_kept_in_their_order_and_each_is_known_once() -> None:
    config = PoolConfig.parse(section())
    assert config.hosts["gpu"] == ("10.0.0.3", "10.0.0.4")
    assert config.all_hosts == ("10.0.0.2", "10.0.0.3", "10.0.0.4")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"worker_ips": []}, r"provider\.worker_ips: unknown key; there are head_host, hosts"),
        ({"head_host": None}, r"provider\.head_host: must be the name or address"),
        ({"head_host": "-oProxyCommand=x"}, r"provider\.head_host: must be the name or address"),
        ({"hosts": ["10.0.0.3"]}, r"provider\.hosts: must map worker types to lists"),
        ({"hosts": {"gpu": "10.0.0.3"}}, r"provider\.hosts\.gpu: must be a list of hosts"),
        ({"hosts": {"gpu": ["a", "a"]}}, r"provider\.hosts\.gpu: a is listed twice"),
        ({"hosts": {"gpu": ["10.0.0.2"]}}, r"provider\.hosts\.gpu: 10\.0\.0\.2 is the head"),
        ({"hosts": {"gpu": ["a b"]}}, r"provider\.hosts\.gpu: must be the name or address"),
        ({"stop_commands": "ray stop"}, r"provider\.stop_commands: must be a list"),
        ({"ssh_known_hosts": 1}, r"provider\.ssh_known_hosts: must be a path"),
    ],
)
def test_a_mistake_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(PoolConfigError, match=message):
        PoolConfig.parse(section(**changes))
