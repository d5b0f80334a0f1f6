"""The section `tenants`, and what keys of the configuration open."""

import pytest

from cluster.api_keys import hash_key
from cluster.config import ApiKeyConfig, ConfigError, parse_config
from cluster.tenant_config import KeyScope
from cluster.tenants.limits import OwnLimits, TenantLimits

MODELS = [{"name": "m", "source": "demo"}]
DIGEST = hash_key("k")


def test_keys_of_the_default_tenant_are_the_operators_and_others_are_not() -> None:
    own = ApiKeyConfig(name="a", sha256=DIGEST)
    other = ApiKeyConfig(name="b", sha256=DIGEST, tenant="acme")
    narrow = ApiKeyConfig(name="c", sha256=DIGEST, scopes=(KeyScope.BUCKETS,))
    assert own.opens == set(KeyScope)
    assert other.opens == {KeyScope.INFERENCE, KeyScope.BUCKETS}
    assert narrow.opens == {KeyScope.BUCKETS}


@pytest.mark.parametrize(
    ("tenants", "said"),
    [
        ({"default_limits": {"requests_per_second": 1}}, "requests_per_second"),
        ({"default_limits": {"stored_bytes": -1}}, "stored_bytes"),
        ({"usage_retention_days": 0}, "usage_retention_days"),
        ({"limits": {}}, "limits"),
    ],
)
def test_mistakes_are_named(tenants: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_config({"models": MODELS, "tenants": tenants})


def test_a_tenants_own_limits_go_before_the_defaults() -> None:
    config = parse_config(
        {
            "models": MODELS,
            "tenants": {"default_limits": {"requests_per_minute": 5, "models": ["a", "b/*"]}},
        }
    )
    defaults = TenantLimits.of(config.tenants.default_limits)
    assert OwnLimits().over(defaults) == defaults
    own = OwnLimits(requests_per_minute="unlimited", tokens_per_minute=0, models=("*",))
    limits = own.over(defaults)
    assert (limits.requests_per_minute, limits.tokens_per_minute) == (None, 0)
    assert limits.allows_model("anything")
    assert [defaults.allows_model(name) for name in ("a", "ab", "b/c", "b")] == [
        *(True, False),
        *(True, False),
    ]
    assert defaults.has_rates
    assert not TenantLimits(models=("a",), stored_bytes=1).has_rates
