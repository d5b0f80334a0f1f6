"""What an ingress is to serve, on its way through Serve, which shows to whoever asks what it has.

There are passwords in it; only processes that hold the cluster secret read it.
"""

import base64
import hashlib
import hmac

from cryptography.fernet import Fernet, InvalidToken

from cluster.config import Section, ShoalConfig


class IngressOrder(Section):
    """A configuration, and what is deployed of it."""

    config: ShoalConfig
    model_versions: dict[str, str]  # by model: which of its replicas are the new ones

    @property
    def digest(self) -> str:
        """Says whether two orders are the same, and nothing else."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def seal(order: IngressOrder, secret: bytes) -> str:
    """The order as a text that says nothing; another one each time."""
    return Fernet(_key(secret)).encrypt(order.model_dump_json().encode()).decode("ascii")


def unseal(sealed: str, secret: bytes) -> IngressOrder:
    """
    Raises:
        ValueError: it was sealed with another secret.
    """
    try:
        return IngressOrder.model_validate_json(Fernet(_key(secret)).decrypt(sealed.encode()))
    except InvalidToken as error:
        raise ValueError(
            "the configuration was sealed with another cluster secret: every host needs the same"
        ) from error


def _key(secret: bytes) -> bytes:
    digest = hmac.digest(secret, b"shoal configuration", hashlib.sha256)
    return base64.urlsafe_b64encode(digest)
