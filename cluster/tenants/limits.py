"""What a tenant may use: the limits of `shoal.yaml`, and a tenant's own that go before them."""

from collections.abc import Iterable
from typing import Literal, Self

import msgspec

from cluster.tenant_config import LimitsConfig

Unlimited = Literal["unlimited"]
UNLIMITED: Unlimited = "unlimited"


class TenantLimits(msgspec.Struct, frozen=True, kw_only=True):
    """As they are in force; None: no limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    concurrent_requests: int | None = None
    stored_bytes: int | None = None
    models: tuple[str, ...] | None = None

    @classmethod
    def of(cls, config: LimitsConfig) -> Self:
        return cls(**config.model_dump())

    @property
    def has_rates(self) -> bool:
        """Whether requests are to be counted before they run."""
        rates = (self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)
        return any(rate is not None for rate in rates)

    def allows_model(self, name: str) -> bool:
        return self.models is None or any(_matches(pattern, name) for pattern in self.models)


class OwnLimits(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was set for one tenant; None: the default holds."""

    requests_per_minute: int | Unlimited | None = None
    tokens_per_minute: int | Unlimited | None = None
    concurrent_requests: int | Unlimited | None = None
    stored_bytes: int | Unlimited | None = None
    models: tuple[str, ...] | None = None  # ("*",): all

    def over(self, defaults: TenantLimits) -> TenantLimits:
        """What is in force where these are set above the defaults."""
        return TenantLimits(
            requests_per_minute=_first(self.requests_per_minute, defaults.requests_per_minute),
            tokens_per_minute=_first(self.tokens_per_minute, defaults.tokens_per_minute),
            concurrent_requests=_first(self.concurrent_requests, defaults.concurrent_requests),
            stored_bytes=_first(self.stored_bytes, defaults.stored_bytes),
            models=defaults.models if self.models is None else self.models,
        )


def allowed_names(names: Iterable[str], limits: TenantLimits | None) -> list[str]:
    """Those of the models that the limits allow; None: all."""
    return [name for name in names if limits is None or limits.allows_model(name)]


def _first(own: int | Unlimited | None, default: int | None) -> int | None:
    if own is None:
        return default
    return None if own == UNLIMITED else own


def _matches(pattern: str, name: str) -> bool:
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern
