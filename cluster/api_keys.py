"""API keys: how they look, how they are stored, who a presented key belongs to.

Only SHA-256 digests are kept in memory and in the configuration. The one exception is the first
key of a fresh installation, which lies in `<home>/api_key`, readable by its owner alone.
"""

import hashlib
import hmac
import os
import secrets
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from cluster.config import ApiKeyConfig, AuthConfig, ConfigError, ShoalConfig

KEY_PREFIX = "shoal-"
KEY_FILE_NAME = "api_key"
FIRST_KEY_NAME = "first"
_OWNER_ONLY = 0o600


def hash_key(key: str) -> str:
    """The form in which a key is stored: the hexadecimal SHA-256 of its UTF-8 text."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """A fresh key with 256 bits of randomness."""
    return KEY_PREFIX + secrets.token_urlsafe(32)


class ApiKeys:
    """The keys that open this server."""

    def __init__(self, keys: Iterable[ApiKeyConfig], *, required: bool = True) -> None:
        self._keys = tuple((bytes.fromhex(key.sha256), key) for key in keys)
        self.required = required
        if required and not self._keys:
            raise ConfigError("auth.required is true but there is no API key: nobody could call")

    @classmethod
    def from_config(cls, auth: AuthConfig, extra: Iterable[ApiKeyConfig] = ()) -> Self:
        """The configured keys and `extra` ones (the first key of this installation)."""
        return cls((*auth.api_keys, *extra), required=auth.required)

    def find(self, key: str) -> ApiKeyConfig | None:
        """The stored key with this text, None for a wrong one.

        Every stored digest is compared, each in constant time, so that the time taken tells
        nothing about the stored keys.
        """
        presented = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
        found: ApiKeyConfig | None = None
        for digest, stored in self._keys:
            if hmac.compare_digest(digest, presented):
                found = stored
        return found


class KeySource(StrEnum):
    """Where the first key came from."""

    ENVIRONMENT = "environment"
    FILE = "file"
    CREATED = "created"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstKey:
    """The key that a fresh installation starts with. `path` is None for SHOAL_API_KEY."""

    text: str
    source: KeySource
    path: Path | None = None
    narrowed_permissions: bool = False  # the file was readable by others, and no longer is

    @property
    def stored(self) -> ApiKeyConfig:
        """What to hand to `ApiKeys.from_config` as extra."""
        return ApiKeyConfig(name=FIRST_KEY_NAME, sha256=hash_key(self.text))


def load_or_create_key(home: Path) -> FirstKey:
    """SHOAL_API_KEY if set, else the key in `<home>/api_key`, created on the first call.

    A key file that others may read is narrowed to its owner, and the result says so.

    Raises:
        ConfigError: the key cannot be sent in a header, or the file is empty or unreadable.
    """
    given = os.environ.get("SHOAL_API_KEY")
    if given:
        return FirstKey(text=_checked(given, "SHOAL_API_KEY"), source=KeySource.ENVIRONMENT)
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = home / KEY_FILE_NAME
    key = new_key()
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
    except FileExistsError:
        return _load_key(path)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(key + "\n")
    return FirstKey(text=key, source=KeySource.CREATED, path=path)


def with_first_key(config: ShoalConfig, key: FirstKey) -> ShoalConfig:
    """The configuration, opened by this key as well."""
    api_keys = (*config.auth.api_keys, key.stored)
    auth = config.auth.model_copy(update={"api_keys": api_keys})
    return config.model_copy(update={"auth": auth})


def _load_key(path: Path) -> FirstKey:
    try:
        is_too_wide = bool(stat.S_IMODE(path.stat().st_mode) & 0o077)
        if is_too_wide:
            path.chmod(_OWNER_ONLY)
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the API key cannot be read: {error}") from error
    return FirstKey(
        text=_checked(text, str(path)),
        source=KeySource.FILE,
        path=path,
        narrowed_permissions=is_too_wide,
    )


def _checked(key: str, origin: str) -> str:
    if not key:
        raise ConfigError(f"{origin}: is empty; delete the file to have a new key created")
    if not all("!" <= char <= "~" for char in key):
        raise ConfigError(f"{origin}: a key has visible ASCII characters only, no spaces")
    return key
