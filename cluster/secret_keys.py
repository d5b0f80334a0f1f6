"""The keys that secrets are encrypted with: where they come from, and how one replaces another.

SHOAL_SECRETS_KEY has them (base64 of 32 bytes each, separated by commas), or `secrets_keys` in
SHOAL_HOME, one a line, readable by its owner alone. All of them open; the first one seals. A key is
known by its id, a digest of it, so that nobody has to name keys.

A file may change while processes use it: `refreshed` notices, which makes rotation a matter of
moments on one machine. Keys from the environment stay as they are until a process ends.
"""

import base64
import binascii
import fcntl
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

ENVIRONMENT = "SHOAL_SECRETS_KEY"
FILE_NAME = "secrets_keys"
KEY_BYTES = 32
KEY_ID_BYTES = 8
_OWNER_ONLY = 0o600
_ID_PREFIX = b"shoal secrets key id\x00"
_NOT_IN_A_FILE = (
    f"the keys are in {ENVIRONMENT}: put a new one behind them there, in every process, then in"
    " front; rewrite the secrets; then the old ones can go"
)


class SecretsKeyError(ValueError):
    """There are no usable keys; the message shows none."""


@dataclass(frozen=True, slots=True)
class SecretKey:
    """256 bits."""

    value: bytes = field(repr=False)

    @classmethod
    def new(cls) -> Self:
        return cls(secrets.token_bytes(KEY_BYTES))

    @classmethod
    def from_text(cls, text: str, origin: str) -> Self:
        """
        Raises:
            SecretsKeyError: not base64 of 32 bytes.
        """
        try:
            value = base64.b64decode(text.strip(), validate=True)
        except (binascii.Error, ValueError):
            value = b""
        if len(value) != KEY_BYTES:
            raise SecretsKeyError(
                f"{origin}: a key must be base64 of {KEY_BYTES} random bytes, as"
                f" `head -c {KEY_BYTES} /dev/urandom | base64` makes them"
            )
        return cls(value)

    @property
    def key_id(self) -> bytes:
        return hashlib.sha256(_ID_PREFIX + self.value).digest()[:KEY_ID_BYTES]

    def text(self) -> str:
        return base64.b64encode(self.value).decode()


@dataclass(frozen=True, slots=True)
class SecretKeys:
    """Keys in order, the one that seals first; and the file they are in, if they are in one."""

    keys: tuple[SecretKey, ...]
    path: Path | None = None
    version: tuple[int, ...] = ()  # of the file

    @classmethod
    def load(cls, home: Path) -> Self:
        """
        Raises:
            SecretsKeyError: there are none, one is broken, or others may read the file.
        """
        given = os.environ.get(ENVIRONMENT)
        if given is not None:
            return cls(_parsed(given.split(","), ENVIRONMENT))
        return cls._from_file(home / FILE_NAME)

    @classmethod
    def _from_file(cls, path: Path) -> Self:
        try:
            with path.open(encoding="ascii") as file:
                status = os.fstat(file.fileno())
                lines = file.read().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise SecretsKeyError(
                f"{path}: the keys of integration secrets cannot be read: {reason}"
            ) from None  # a decoding error would quote what is in the file
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise SecretsKeyError(f"{path}: others may read it; run `chmod 600` on it")
        return cls(_parsed(lines, str(path)), path, _version(status))

    @property
    def first(self) -> SecretKey:
        return self.keys[0]

    def find(self, key_id: bytes) -> SecretKey | None:
        return next((key for key in self.keys if key.key_id == key_id), None)

    def refreshed(self) -> Self:
        """The keys as they are now: the same object when the file has not changed.

        Raises:
            SecretsKeyError: as `load`.
        """
        if self.path is None:
            return self
        try:
            if _version(self.path.stat()) == self.version:
                return self
        except OSError:
            pass  # reading it says what is wrong
        return self._from_file(self.path)


def ensure_keys_file(home: Path) -> None:
    """Make the file with a first key, unless the environment has keys or the file is there.

    Several processes may do this at once: one of them makes it, whole or not at all.
    """
    path = home / FILE_NAME
    if ENVIRONMENT in os.environ or path.exists():
        return
    draft = _draft(path, [SecretKey.new()])
    try:
        os.link(draft, path)
    except FileExistsError:
        pass  # another process was faster
    finally:
        draft.unlink()


@contextmanager
def rotation_lock(keys: SecretKeys) -> Iterator[None]:
    """Held while keys are replaced: of two rotations at once one would lose the other's key.

    Raises:
        SecretsKeyError: another process holds it, or the keys are not in a file.
    """
    if keys.path is None:
        raise SecretsKeyError(_NOT_IN_A_FILE)
    path = keys.path.with_name(f".{keys.path.name}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR, _OWNER_ONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise SecretsKeyError(f"{keys.path}: the keys are just being rotated") from None
    finally:
        os.close(descriptor)


def replace_keys(keys: SecretKeys, new: Sequence[SecretKey]) -> SecretKeys:
    """Write other keys into the file, in one step.

    Raises:
        SecretsKeyError: the keys are not in a file.
    """
    if keys.path is None:
        raise SecretsKeyError(_NOT_IN_A_FILE)
    os.replace(_draft(keys.path, new), keys.path)
    return keys.refreshed()


def _parsed(texts: Iterable[str], origin: str) -> tuple[SecretKey, ...]:
    keys = tuple(SecretKey.from_text(text, origin) for text in texts if text.strip())
    if not keys:
        raise SecretsKeyError(f"{origin}: there is no key in it")
    return tuple(dict.fromkeys(keys))


def _draft(path: Path, keys: Sequence[SecretKey]) -> Path:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_CREAT | os.O_EXCL | os.O_WRONLY, _OWNER_ONLY)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.writelines(key.text() + "\n" for key in keys)
        file.flush()
        os.fsync(file.fileno())
    return draft


def _version(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_ino, status.st_mtime_ns, status.st_size)
