"""The order to an ingress can be read by those who hold the secret, and by nobody else."""

import pytest

from cluster.config import parse_config
from deployments.sealed_config import IngressOrder, seal, unseal

PASSWORD = "nobody-may-see-this"
ORDER = IngressOrder(
    config=parse_config(
        {
            "models": [{"name": "chat", "source": "demo"}],
            "redis": {"url": f"redis://user:{PASSWORD}@localhost"},
        }
    ),
    model_versions={"chat": "abc"},
)


def test_it_comes_out_as_it_went_in_and_says_nothing_on_its_way() -> None:
    sealed = seal(ORDER, b"s" * 32)
    assert PASSWORD not in sealed
    assert unseal(sealed, b"s" * 32) == ORDER


def test_with_another_secret_it_cannot_be_read() -> None:
    with pytest.raises(ValueError, match="another cluster secret"):
        unseal(seal(ORDER, b"s" * 32), b"x" * 32)
