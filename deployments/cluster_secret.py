"""The secret that the processes of one cluster share, and how two of them prove that they hold it:
the token channel's authentication, and that of tensor-parallel ranks.

It comes from SHOAL_CLUSTER_SECRET, or lies in `<home>/cluster_secret`, readable by its owner alone.
"""

import hashlib
import hmac
import os
import secrets
import stat
from pathlib import Path

SECRET_FILE_NAME = "cluster_secret"
MIN_SECRET_CHARS = 32
NONCE_BYTES = 32
_OWNER_ONLY = 0o600


def load_cluster_secret(home: Path) -> bytes:
    """The secret of this cluster.

    Raises:
        ValueError: there is none, it is too short, or others may read its file.
    """
    given = os.environ.get("SHOAL_CLUSTER_SECRET")
    if given is not None:
        return _checked(given, "SHOAL_CLUSTER_SECRET")
    path = home / SECRET_FILE_NAME
    try:
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ValueError(f"{path}: others may read it; run `chmod 600` on it")
        return _checked(path.read_text(encoding="ascii").strip(), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: the cluster secret cannot be read: {error}") from error


def create_private_text(path: Path, text: str) -> None:
    """Write a file that its owner alone can read, unless it is there already."""
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
    except FileExistsError:
        return
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(text + "\n")


def new_secret() -> str:
    """A fresh secret with 256 bits of randomness."""
    return secrets.token_hex(32)


def new_nonce() -> bytes:
    return secrets.token_bytes(NONCE_BYTES)


def proof(secret: bytes, role: bytes, first_nonce: bytes, second_nonce: bytes) -> bytes:
    """What only a holder of the secret can say, in that role, about these two nonces.

    Both sides check that nonces have NONCE_BYTES, so that the concatenation is unambiguous.

    Raises:
        ValueError: one of them has not.
    """
    if not len(first_nonce) == len(second_nonce) == NONCE_BYTES:
        raise ValueError("a nonce of the wrong length")
    return hmac.digest(secret, role + first_nonce + second_nonce, hashlib.sha256)


def _checked(secret: str, origin: str) -> bytes:
    if len(secret) < MIN_SECRET_CHARS:
        raise ValueError(
            f"{origin}: the cluster secret has {len(secret)} characters;"
            f" at least {MIN_SECRET_CHARS} are needed"
        )
    return secret.encode()
