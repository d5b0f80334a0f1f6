"""What is kept of tenants and of their keys, and the key of a request."""

import hashlib
import hmac
import re
import secrets
import string
import time

import msgspec

from cluster.api_keys import KEY_PREFIX, hash_key
from cluster.config import ApiKeyConfig
from cluster.tenant_config import PLAIN_SCOPES, KeyScope
from cluster.tenants.limits import OwnLimits

_ID_CHARS = string.ascii_lowercase + string.digits
_NUM_ID_CHARS = 16
_NUM_SECRET_BYTES = 32
# The id in front of the secret is how a key is found, and how people tell keys apart.
_KEY_TEXT = re.compile(rf"{KEY_PREFIX}([a-z0-9]{{{_NUM_ID_CHARS}}})-[A-Za-z0-9_-]{{43}}")
ANONYMOUS_ID = "none"


class TenantRecord(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    created_at: float | None  # Unix time; None: nobody has made it, the configuration names it
    limits: OwnLimits = OwnLimits()


class KeyRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A key as it is stored: its SHA-256, never its text."""

    key_id: str
    tenant: str
    name: str
    sha256: str
    scopes: tuple[KeyScope, ...]
    created_at: float  # Unix time
    expires_at: float | None = None  # None: never

    def is_expired(self) -> bool:
        return self.expires_at is not None and self.expires_at <= time.time()

    def is_of(self, text: str) -> bool:
        """Whether this is the record of a presented key; takes the same time for any."""
        presented = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        return hmac.compare_digest(bytes.fromhex(self.sha256), presented)


class ApiKey(msgspec.Struct, frozen=True, kw_only=True):
    """Whose request it is, and what it may ask for."""

    key_id: str  # in usage: of a stored key its id, of a configured one `config/NAME`
    name: str
    tenant: str
    scopes: frozenset[KeyScope]

    @classmethod
    def configured(cls, key: ApiKeyConfig) -> "ApiKey":
        return cls(key_id=f"config/{key.name}", name=key.name, tenant=key.tenant, scopes=key.opens)

    @classmethod
    def stored(cls, record: KeyRecord) -> "ApiKey":
        return cls(
            key_id=record.key_id,
            name=record.name,
            tenant=record.tenant,
            scopes=frozenset(record.scopes),
        )

    @classmethod
    def nobody(cls, tenant: str) -> "ApiKey":
        """Where no key is needed. Keys and tenants are nobody's to change, even there."""
        scopes = frozenset(PLAIN_SCOPES)
        return cls(key_id=ANONYMOUS_ID, name="", tenant=tenant, scopes=scopes)


class NewKey(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was just made. Its text is nowhere else."""

    text: str
    record: KeyRecord

    @classmethod
    def make(
        cls, tenant: str, name: str, *, scopes: tuple[KeyScope, ...], expires_at: float | None
    ) -> "NewKey":
        key_id = "".join(secrets.choice(_ID_CHARS) for _ in range(_NUM_ID_CHARS))
        text = f"{KEY_PREFIX}{key_id}-{secrets.token_urlsafe(_NUM_SECRET_BYTES)}"
        return cls(
            text=text,
            record=KeyRecord(
                key_id=key_id,
                tenant=tenant,
                name=name,
                sha256=hash_key(text),
                scopes=scopes,
                created_at=round(time.time(), 3),
                expires_at=expires_at,
            ),
        )

    def __repr__(self) -> str:
        return f"NewKey({self.record.key_id})"


def key_id_of(text: str) -> str | None:
    """The id in a key's text; None: it is none of the keys that are stored."""
    match = _KEY_TEXT.fullmatch(text)
    return match[1] if match else None
