"""An ingress with two providers: `far/…` misbehaves as its test says, `down/…` is not there."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RedisConfig
from cluster.integration_secrets import BasicValue, BearerValue
from cluster.provider_config import EXTRA_PARAMETERS, OPENAI_PARAMETERS, ProviderConfig
from cluster.redis_client import connect
from tests.deployments.ingress.door_server import DoorServer, serving_doors
from tests.deployments.ingress.providers.fake_provider import FakeProvider, running_provider
from tests.redis_server import free_port

TOKEN = "sk-planted-provider-token"
REF = "my key"


def far(provider: FakeProvider, **more: Any) -> ProviderConfig:
    return ProviderConfig.model_validate(
        {
            "name": "far",
            "base_url": provider.base_url,
            "parameters": OPENAI_PARAMETERS,
            "token_limit_field": "max_completion_tokens",
            "connect_timeout_s": 60.0,
            "read_timeout_s": 60.0,
            **more,
        }
    )


@pytest.fixture
async def provider() -> AsyncIterator[FakeProvider]:
    async with running_provider() as running:
        yield running


@pytest.fixture
async def doors(
    checkpoint: Path,
    tmp_path: Path,
    redis_config: RedisConfig,
    provider: FakeProvider,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[DoorServer]:
    for limit in ("_ERROR_TIMEOUT_S", "_POOL_TIMEOUT_S"):  # that only what is broken reaches
        monkeypatch.setattr(f"deployments.ingress.providers.provider_client.{limit}", 120.0)
    configs = [
        far(provider, models=["far/known"]),
        far(provider, name="impatient", read_timeout_s=0.2),
        far(provider, name="few", max_connections=1),
        far(provider, name="hasty", answer_timeout_s=0.3),
        far(provider, name="extra", more_parameters=EXTRA_PARAMETERS, keeps_prefix=True),
        far(provider, name="plain", parameters=["temperature"], token_limit_field="max_tokens"),
        far(provider, name="login", auth="basic"),
        far(provider, name="header", auth="header", auth_header="x-api-key"),
        far(provider, name="open", auth="none", headers={"x-team": "blue"}),
        far(provider, name="down", base_url=f"http://127.0.0.1:{free_port()}/v1"),
    ]
    async with (
        connect(redis_config) as redis,
        serving_doors(checkpoint, tmp_path, redis, configs) as running,
    ):
        await running.secrets.create("default", REF, BearerValue(TOKEN))
        await running.secrets.create("default", "a login", BasicValue("me", "planted-password"))
        await running.secrets.create("other", "their key", BearerValue("sk-theirs"))
        yield running
