"""The secrets that all hosts of a cluster share, as files on the host that runs `ray up`.

A cluster file names them in `file_mounts`; by the name on the hosts it is known what each one is.
"""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from cluster.api_keys import KEY_FILE_NAME, new_key
from cluster.secret_keys import FILE_NAME as SECRETS_KEYS_FILE_NAME
from cluster.secret_keys import SecretKey
from deployments.cluster_secret import SECRET_FILE_NAME, create_private_text, new_secret

RAY_TOKEN_FILE_NAME = "ray_token"
HOME_ON_HOSTS = PurePosixPath("~/.shoal")

# The name below ~/.shoal on the hosts -> a fresh one.
MAKERS: dict[str, Callable[[], str]] = {
    RAY_TOKEN_FILE_NAME: new_secret,
    SECRET_FILE_NAME: new_secret,
    SECRETS_KEYS_FILE_NAME: lambda: SecretKey.new().text(),
    KEY_FILE_NAME: new_key,
}


def key_files(cluster: Mapping[str, Any]) -> dict[str, Path]:
    """The secrets that a cluster file mounts: what each is -> where it is on this host."""
    mounts = cluster.get("file_mounts") or {}
    found = {}
    for remote, local in mounts.items():
        path = PurePosixPath(str(remote))
        if path.parent == HOME_ON_HOSTS and path.name in MAKERS:
            found[path.name] = Path(str(local)).expanduser()
    return found


def make_keys(cluster: Mapping[str, Any]) -> list[Path]:
    """Make those that are not there, readable by their owner alone; the ones that were made."""
    made = []
    for name, path in key_files(cluster).items():
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            create_private_text(path, MAKERS[name]())
            made.append(path)
    return made
