"""What the host that runs `ray up` needs to get into hosts of one's own: programs, a key, theirs.

Nothing is connected to. What is missing is a note and no problem: the file may be checked on
another machine than the one that will launch it.
"""

import base64
import binascii
import hashlib
import hmac
import shutil
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from deployments.ssh_pool.pool_config import PoolConfig, PoolConfigError

_HASHED = "|1|"  # `HashKnownHosts`: then a salt and the HMAC-SHA1 of the name, both in base64


def check_launcher(cluster: Mapping[str, Any]) -> list[str]:
    """Notes on a file with `provider.type: external`."""
    notes = [
        f"{program} is not installed here, and `ray up` runs it"
        for program in ("ssh", "rsync")
        if shutil.which(program) is None
    ]
    auth = cluster.get("auth")
    key = auth.get("ssh_private_key") if isinstance(auth, Mapping) else None
    if isinstance(key, str) and not Path(key).expanduser().is_file():
        notes.append(f"auth.ssh_private_key: {key} is not here")
    try:
        pool = PoolConfig.parse(cluster["provider"])
    except PoolConfigError:
        return notes  # it is named elsewhere
    if pool.ssh_known_hosts is not None:
        notes += _check_known_hosts(pool.ssh_known_hosts, pool.all_hosts)
    return notes


def _check_known_hosts(path: Path, hosts: Iterable[str]) -> list[str]:
    names: list[str] = []
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        # A marker (@revoked, @cert-authority) stands in front of the names.
        names = [line.split()[0] for line in lines if line.strip() and line[0] not in "#@"]
    unknown = [host for host in hosts if not any(_is_of(host, name) for name in names)]
    if not unknown:
        return []
    return [
        f"provider.ssh_known_hosts: {path} has no key of {', '.join(unknown)}, which would be "
        f"refused; `ssh-keyscan {' '.join(unknown)} >>{path}`, and compare the keys"
    ]


def _is_of(host: str, names: str) -> bool:
    """Whether the first field of a line is about a host."""
    if not names.startswith(_HASHED):
        return any(fnmatchcase(host, pattern) for pattern in names.split(","))
    salt, _, digest = names.removeprefix(_HASHED).partition("|")
    try:
        given = hmac.digest(base64.b64decode(salt), host.encode(), hashlib.sha1)
        return hmac.compare_digest(given, base64.b64decode(digest))
    except binascii.Error:
        return False
