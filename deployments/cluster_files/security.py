"""Whether a cluster is closed to strangers: Ray's token, the secrets, the ports.

Ray runs programs for whoever reaches it, so nothing here is a matter of taste.
"""

import itertools
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.config import HTTPConfig
from deployments.cluster_files.keys import MAKERS, key_files
from deployments.local_ray import SERVE_ENVIRONMENT
from deployments.ssh_pool.pool_config import PoolConfig, PoolConfigError

RAY_ENV_ON_HOSTS = "~/.shoal/ray.env"
NEEDED_ENVIRONMENT = {"RAY_AUTH_MODE": "token", **SERVE_ENVIRONMENT}
SSH_PORT = 22
HTTPS_PORT = 443
LOOPBACK = ("127.0.0.1", "localhost", "::1")
_EVERYBODY = ("0.0.0.0/0", "::/0")
_EXPORT = re.compile(r"^\s*export\s+(\w+)=(.*)$", re.MULTILINE)


def check_environment(environment: Mapping[str, str], place: str) -> list[str]:
    """That all Ray processes ask for the token, and Serve is set as on one machine."""
    lines = []
    for name, wanted in NEEDED_ENVIRONMENT.items():
        given = environment.get(name)
        if given != wanted:
            shown = "is missing" if given is None else f"is {given!r}"
            lines.append(f"{place}: {name} {shown}; it must be {wanted!r} on every host")
    return lines


def check_mounts(cluster: Mapping[str, Any]) -> list[str]:
    """That the environment and all secrets get to the hosts, and nobody else reads them here."""
    mounts = {str(remote): str(local) for remote, local in _mapping(cluster, "file_mounts").items()}
    lines = []
    if RAY_ENV_ON_HOSTS not in mounts:
        lines.append(f"file_mounts: {RAY_ENV_ON_HOSTS} is missing: Ray would ask for no token")
    else:
        path = Path(mounts[RAY_ENV_ON_HOSTS]).expanduser()
        if path.exists():
            exports = dict(_EXPORT.findall(path.read_text(encoding="utf-8")))
            lines += check_environment(exports, str(path))
    keys = key_files(cluster)
    for name in MAKERS:
        if name not in keys:
            lines.append(f"file_mounts: ~/.shoal/{name} is missing: the hosts must share it")
    for remote, local in mounts.items():
        path = Path(local).expanduser()
        if not path.exists():
            is_key = remote.rpartition("/")[2] in keys
            hint = "; `shoal cluster keys` makes it" if is_key else ""
            lines.append(f"file_mounts.{remote}: {local} is not here{hint}")
    for path in keys.values():
        if path.exists() and path.stat().st_mode & 0o077:
            lines.append(f"file_mounts: others can read {path}; run `chmod 600` on it")
    return lines


def check_ports(cluster: Mapping[str, Any], http: HTTPConfig) -> list[str]:
    """That only ssh and the API are open to others, by whatever closes ports at the provider."""
    provider = _mapping(cluster, "provider")
    # On loopback the API is for a front on the head, which ends TLS.
    api_port = HTTPS_PORT if http.host in LOOPBACK else http.port
    match provider.get("type"):
        case "external":
            return _check_host_firewall(cluster, provider, api_port)
        case "aws":
            return _check_security_group(provider, api_port)
        case _:
            return []  # GCP and Azure: rules outside of the file, see the README


def check_start_commands(cluster: Mapping[str, Any]) -> list[str]:
    """Of the head and of the workers: what must be in `ray start`, and what must not."""
    lines = []
    head = _ray_start(cluster, "head_start_ray_commands")
    workers = _ray_start(cluster, "worker_start_ray_commands")
    if head is None:
        lines.append("head_start_ray_commands: no command starts Ray (`ray start --head`)")
    else:
        place = "head_start_ray_commands"
        if head.get("--autoscaling-config") != "~/ray_bootstrap_config.yaml":
            lines.append(
                f"{place}: --autoscaling-config=~/ray_bootstrap_config.yaml is missing: no worker "
                "would ever start"
            )
        if head.get("--dashboard-host", "127.0.0.1") not in ("127.0.0.1", "localhost"):
            lines.append(
                f"{place}: --dashboard-host is {head['--dashboard-host']!r}; it must be "
                "127.0.0.1 (`ray dashboard` opens a tunnel to it)"
            )
        if "shoal deploy" not in str(cluster["head_start_ray_commands"][-1]):
            lines.append(f"{place}: the last one must be `shoal deploy`: nothing would be served")
        if workers is not None:
            lines += _check_join(head, workers)
    if workers is None:
        lines.append("worker_start_ray_commands: no command starts Ray (`ray start --address=…`)")
    return lines


def _check_join(head: Mapping[str, str], workers: Mapping[str, str]) -> list[str]:
    address = f"$RAY_HEAD_IP:{head.get('--port', '6379')}"
    if workers.get("--address") == address:
        return []
    return [
        f"worker_start_ray_commands: --address is {workers.get('--address')!r}; the head is at "
        f"{address!r}"
    ]


def _check_host_firewall(
    cluster: Mapping[str, Any], provider: Mapping[str, Any], api_port: int
) -> list[str]:
    options = _host_firewall(cluster)
    if options is None:
        return [
            "setup_commands: scripts/host_firewall is missing: Ray's ports would be open to all"
        ]
    inside = _insiders(options)
    try:
        hosts = PoolConfig.parse(provider).all_hosts
    except PoolConfigError:
        return []  # it is named elsewhere
    lines = []
    missing = [host for host in hosts if host not in inside]
    if missing and not any("/" in address for address in inside):
        lines.append(
            f"setup_commands: host_firewall --cluster leaves out {', '.join(missing)}: they could "
            "not reach the others"
        )
    opened = set(filter(None, options.get("--open", "").split(",")))
    if extra := sorted(opened - {str(api_port)}):
        lines.append(
            f"setup_commands: host_firewall --open has {', '.join(extra)}; only the API's port "
            f"{api_port} is for others"
        )
    if str(api_port) not in opened and api_port >= 1024:
        lines.append(f"setup_commands: host_firewall --open lacks the API's port {api_port}")
    return lines


def check_insiders(cluster: Mapping[str, Any]) -> list[str]:
    """Notes on who else is let in by the firewall of hosts of one's own."""
    options = _host_firewall(cluster)
    try:
        hosts = PoolConfig.parse(_mapping(cluster, "provider")).all_hosts
    except PoolConfigError:
        return []  # it is named elsewhere
    inside = set() if options is None else _insiders(options)
    others = sorted(one for one in inside if "/" not in one and one not in hosts)
    if not others:
        return []
    return [
        f"setup_commands: host_firewall --cluster lets {', '.join(others)} reach Ray's ports, and "
        "the file has no such host"
    ]


def _host_firewall(cluster: Mapping[str, Any]) -> dict[str, str] | None:
    """The options of the command that closes a host's ports; None: there is none."""
    commands = [str(line) for line in cluster.get("setup_commands") or []]
    found = next((shlex.split(line) for line in commands if "host_firewall" in line), None)
    return None if found is None else dict(itertools.pairwise(found))


def _insiders(options: Mapping[str, str]) -> set[str]:
    """Addresses and networks that reach every port."""
    return set(filter(None, options.get("--cluster", "").split(",")))


def _check_security_group(provider: Mapping[str, Any], api_port: int) -> list[str]:
    group = provider.get("security_group")
    if not isinstance(group, Mapping):
        return ["provider.security_group: is missing: nobody outside could reach the API"]
    lines = []
    allowed = {SSH_PORT, HTTPS_PORT, api_port}
    is_open = False
    for rule in group.get("IpPermissions") or []:
        first, last = rule.get("FromPort", 0), rule.get("ToPort", 65535)
        sources = [r.get("CidrIp") or r.get("CidrIpv6") for r in _ranges(rule)]
        is_open = is_open or first <= api_port <= last
        if set(sources) & set(_EVERYBODY) and not (first == last and first in allowed):
            lines.append(
                f"provider.security_group.IpPermissions: ports {first} to {last} are open to "
                f"everybody; only {', '.join(map(str, sorted(allowed)))} may be"
            )
    if not is_open:
        lines.append(
            f"provider.security_group.IpPermissions: no rule opens the API's port {api_port}"
        )
    return lines


def _ranges(rule: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    return [*(rule.get("IpRanges") or []), *(rule.get("Ipv6Ranges") or [])]


def _ray_start(cluster: Mapping[str, Any], key: str) -> dict[str, str] | None:
    """The options of the `ray start` in these commands; flags have an empty value."""
    for command in cluster.get(key) or []:
        words = shlex.split(str(command), comments=False)
        for at in range(len(words) - 1):
            if words[at : at + 2] == ["ray", "start"]:
                pairs = (word.partition("=") for word in words[at + 2 :])
                return {name: value for name, _, value in pairs}
    return None


def _mapping(cluster: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = cluster.get(key)
    return value if isinstance(value, Mapping) else {}
