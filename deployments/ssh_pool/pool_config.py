"""The section `provider` of a cluster file for hosts of our own: which they are, how to get in.

Ray passes the section on unread. What our provider itself adds for the head (`ADDED_KEYS`) is known
here too: the same section is read on the host that runs `ray up` and on the head.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

MODULE = "deployments.ssh_pool.provider.SSHPool"
DEFAULT_STOP_COMMANDS = ("ray stop --force",)
_REQUIRED = ("head_host", "hosts")
_OPTIONAL = ("stop_commands", "ssh_known_hosts")
_OF_RAY = ("type", "module", "use_internal_ips", "_config_cache_path")
ADDED_KEYS = ("ssh_user", "ssh_private_key", "head_node", "known_host_lines")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]*[A-Za-z0-9])?")  # a name or an address


class PoolConfigError(ValueError):
    """The section cannot be used; the message names the key, what was given and what is allowed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadNode:
    """The head as the host that ran `ray up` knows it; written into the section for the head."""

    node_id: str
    tags: dict[str, str]
    start_id: str  # another one at each `ray up`


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolConfig:
    """The section, checked."""

    head_host: str
    hosts: dict[str, tuple[str, ...]]  # worker types -> hosts, the first ones first
    stop_commands: tuple[str, ...] = DEFAULT_STOP_COMMANDS
    ssh_user: str = ""  # from the section `auth`
    ssh_private_key: str | None = None
    ssh_known_hosts: Path | None = None  # None: any host key is taken, as Ray does
    known_host_lines: tuple[str, ...] = ()
    head_node: HeadNode | None = field(default=None)  # set: this process runs on the head

    @classmethod
    def parse(cls, section: Mapping[str, Any]) -> Self:
        """
        Raises:
            PoolConfigError: see there.
        """
        known = {*_REQUIRED, *_OPTIONAL, *_OF_RAY, *ADDED_KEYS}
        unknown = sorted(set(section) - known)
        if unknown:
            allowed = ", ".join((*_REQUIRED, *_OPTIONAL))
            raise PoolConfigError(f"provider.{unknown[0]}: unknown key; there are {allowed}")
        head_host = _host(section.get("head_host"), "provider.head_host")
        hosts = section.get("hosts")
        if not isinstance(hosts, Mapping):
            raise PoolConfigError(
                f"provider.hosts: must map worker types to lists of hosts, not be {hosts!r}"
            )
        known_hosts = section.get("ssh_known_hosts")
        if known_hosts is not None and not isinstance(known_hosts, str):
            raise PoolConfigError(f"provider.ssh_known_hosts: must be a path, not {known_hosts!r}")
        head_node = section.get("head_node")
        return cls(
            head_host=head_host,
            hosts={str(name): _hosts(name, given, head_host) for name, given in hosts.items()},
            stop_commands=_commands(section.get("stop_commands", DEFAULT_STOP_COMMANDS)),
            ssh_user=str(section.get("ssh_user", "")),
            ssh_private_key=section.get("ssh_private_key"),
            ssh_known_hosts=None if known_hosts is None else Path(known_hosts).expanduser(),
            known_host_lines=tuple(section.get("known_host_lines", ())),
            head_node=None if head_node is None else HeadNode(**head_node),
        )

    @property
    def all_hosts(self) -> tuple[str, ...]:
        """The head's first, each once."""
        workers = [host for hosts in self.hosts.values() for host in hosts]
        return tuple(dict.fromkeys((self.head_host, *workers)))


def _host(given: object, key: str) -> str:
    if not isinstance(given, str) or not _HOST.fullmatch(given):
        raise PoolConfigError(f"{key}: must be the name or address of a host, not {given!r}")
    return given


def _hosts(node_type: object, given: object, head_host: str) -> tuple[str, ...]:
    key = f"provider.hosts.{node_type}"
    if not isinstance(given, Sequence) or isinstance(given, str):
        raise PoolConfigError(f"{key}: must be a list of hosts, not {given!r}")
    hosts = tuple(_host(host, key) for host in given)
    doubled = sorted({host for host in hosts if hosts.count(host) > 1})
    if doubled:
        raise PoolConfigError(f"{key}: {doubled[0]} is listed twice")
    if head_host in hosts:
        raise PoolConfigError(
            f"{key}: {head_host} is the head, and a host runs one Ray: give the head type the "
            "resources instead"
        )
    return hosts


def _commands(given: object) -> tuple[str, ...]:
    if isinstance(given, Sequence) and not isinstance(given, str):
        commands = tuple(given)
        if all(isinstance(command, str) and command for command in commands):
            return commands
    raise PoolConfigError(f"provider.stop_commands: must be a list of commands, not {given!r}")
