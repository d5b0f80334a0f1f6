"""Encryption of secrets at rest: AES-256-GCM, with the key's id in front of each ciphertext.

A sealed value is `version (1) | key id (8) | nonce (12) | ciphertext and tag`. The version, the key
id and the caller's context (whose secret it is, under which name) are authenticated with it: a
value that is moved to another place opens no more. Nonces are random: one key may seal 2^32 values
before two are likely to share one (NIST SP 800-38D), and rotation makes a new key.
"""

import os
from collections.abc import Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cluster.errors import ServiceUnavailableError
from cluster.secret_keys import KEY_ID_BYTES, SecretKey, SecretKeys

_VERSION = b"\x01"
_NONCE_BYTES = 12
_TAG_BYTES = 16
_HEAD_BYTES = len(_VERSION) + KEY_ID_BYTES


class SecretSealedError(ServiceUnavailableError):
    """A stored secret cannot be opened: its key is not here, or it is not what was stored."""


class SecretBox:
    """Seals with the first key, opens with any; keys in a file are followed as they change."""

    def __init__(self, keys: SecretKeys) -> None:
        self._keys = keys

    @property
    def keys(self) -> SecretKeys:
        """The newest."""
        self._keys = self._keys.refreshed()
        return self._keys

    def seal(self, value: bytes, *, context: Sequence[str]) -> bytes:
        """
        Raises:
            SecretsKeyError: the file with the keys has become unreadable.
        """
        key = self.keys.first
        head, nonce = _VERSION + key.key_id, os.urandom(_NONCE_BYTES)
        sealed = AESGCM(key.value).encrypt(nonce, value, _authenticated(head, context))
        return head + nonce + sealed

    def open(self, sealed: bytes, *, context: Sequence[str]) -> bytes:
        """
        Raises:
            SecretSealedError: the key is not here, or the value was changed or moved.
        """
        head, nonce = sealed[:_HEAD_BYTES], sealed[_HEAD_BYTES : _HEAD_BYTES + _NONCE_BYTES]
        if sealed[:1] != _VERSION or len(sealed) < _HEAD_BYTES + _NONCE_BYTES + _TAG_BYTES:
            raise SecretSealedError("A stored secret is not in a form that this version knows.")
        key = self._find(key_id(sealed))
        try:
            return AESGCM(key.value).decrypt(
                nonce, sealed[_HEAD_BYTES + _NONCE_BYTES :], _authenticated(head, context)
            )
        except InvalidTag:
            raise SecretSealedError("A stored secret is not what was stored.") from None

    def is_current(self, sealed: bytes) -> bool:
        """Whether it was sealed with the key that seals now."""
        return key_id(sealed) == self.keys.first.key_id

    def _find(self, wanted: bytes) -> SecretKey:
        key = self._keys.find(wanted) or self.keys.find(wanted)
        if key is None:
            raise SecretSealedError(
                f"A stored secret was encrypted with the key {wanted.hex()}, which is not here."
            )
        return key


def key_id(sealed: bytes) -> bytes:
    """Of the key that a value was sealed with."""
    return sealed[len(_VERSION) : _HEAD_BYTES]


def _authenticated(head: bytes, context: Sequence[str]) -> bytes:
    """Each part with its length, so that no two contexts look the same."""
    parts = [part.encode() for part in context]
    return head + b"".join(len(part).to_bytes(4, "big") + part for part in parts)
