"""`shoal tenant` and `shoal key` against the real admin API on a real Redis."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine

import pytest
from click.testing import Result
from typer.testing import CliRunner

from cluster.cli import app
from cluster.cli_error import CommandError
from cluster.config import RedisConfig
from cluster.redis_client import connect
from cluster.telemetry import Telemetry
from cluster.tenants.usage import UsageCounts, UsageRecorder
from deployments.ingress.app import build_asgi_app
from deployments.ingress.services import TenantServices
from tests.deployments.ingress.scripted_server import KEY, configuration, listening

Run = Callable[..., Coroutine[None, None, Result]]


@pytest.fixture
async def shoal(redis_config: RedisConfig, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Run]:
    """Runs a command against an ingress without models."""
    monkeypatch.setenv("SHOAL_API_KEY", KEY)
    monkeypatch.setenv("COLUMNS", "200")  # of a wide terminal
    config = configuration()
    async with connect(redis_config) as redis:
        ingress = build_asgi_app(config, {}, TenantServices.of(config, redis), Telemetry())
        async with listening(ingress) as port:

            async def run(*arguments: str, answer: str = "") -> Result:
                command = [*arguments, "--url", f"http://127.0.0.1:{port}"]
                return await asyncio.to_thread(CliRunner().invoke, app, command, input=answer)

            yield run


async def test_a_tenant_is_made_shown_changed_and_deleted(shoal: Run) -> None:
    made = await shoal(
        *("tenant", "create", "acme", "--requests-per-minute", "600"),
        *("--stored-bytes", "10GiB", "--model", "a/*", "--model", "b"),
    )
    assert made.exit_code == 0, made.output
    listed = (await shoal("tenant", "list")).stdout
    assert "acme" in listed
    assert f"{10 * 2**30:,}" in listed
    assert "a/*, b" in listed
    assert "configured" in listed  # the default tenant
    changed = await shoal(
        *("tenant", "update", "acme", "--requests-per-minute", "default"),
        *("--tokens-per-minute", "unlimited", "--stored-bytes", "2M", "--model", "default"),
    )
    assert changed.exit_code == 0, changed.output
    shown = [line.split() for line in (await shoal("tenant", "show", "acme")).stdout.splitlines()]
    assert ["requests/min", "unlimited", "default"] in shown
    assert ["tokens/min", "unlimited", "unlimited"] in shown
    assert ["stored", "bytes", "2,000,000", "2,000,000"] in shown
    assert ["models", "all", "default"] in shown
    kept = await shoal("tenant", "delete", "acme", answer="n\n")
    assert kept.exit_code == 1
    assert "acme" in (await shoal("tenant", "list")).stdout
    assert "deleted acme" in (await shoal("tenant", "delete", "acme", answer="y\n")).stdout
    assert "acme" not in (await shoal("tenant", "list")).stdout


async def test_a_key_is_shown_once_rotated_and_revoked(shoal: Run) -> None:
    made = await shoal("key", "create", "app", "--scope", "buckets", "--expires", "90d")
    text = made.stdout.strip()
    key_id = text.split("-")[1]
    assert text.startswith("shoal-")
    assert key_id in made.stderr
    listed = (await shoal("key", "list")).stdout
    assert key_id in listed
    assert text not in listed
    assert "buckets" in listed
    rotated = await shoal("key", "rotate", key_id, "--overlap", "0s")
    heir = rotated.stdout.strip().split("-")[1]
    assert f"the old key {key_id} ends" in rotated.stderr
    assert "expired" in (await shoal("key", "list")).stdout
    for each in (key_id, heir):
        assert (await shoal("key", "revoke", each)).exit_code == 0
    assert "no keys" in (await shoal("key", "list")).stdout


async def test_usage_is_a_table_or_csv(shoal: Run, redis_config: RedisConfig) -> None:
    async with connect(redis_config) as redis:
        recorder = UsageRecorder(redis, retention_days=2)
        counts = UsageCounts(1200, 10, 4, 3)
        recorder.add("default", model="m", key_id="k", counts=counts)
        recorder.add("acme", model="=m", key_id="k", counts=counts)
        await recorder.written()
    table = (await shoal("usage", "--by", "tenant", "--by", "model")).stdout.splitlines()
    assert [line.split() for line in table[1:]] == [
        ["tenant", "model", "requests", "prompt", "cached", "completion", "tokens"],
        ["acme", "=m", "1,200", "10", "4", "3", "13"],
        ["default", "m", "1,200", "10", "4", "3", "13"],
        ["total", "2,400", "20", "8", "6", "26"],
    ]
    rows = (await shoal("usage", "--csv", "--tenant", "acme")).stdout.splitlines()
    assert rows[0].startswith("day,tenant,model,key,num_requests,prompt_tokens")
    assert rows[1].endswith(",acme,'=m,k,1200,10,4,3,13")
    own = (await shoal("usage", "--csv", "--own", "--by", "tenant")).stdout.splitlines()
    assert own[1:] == ["default,1200,10,4,3,13"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("tenant", "create", "acme", "--stored-bytes", "many"), "--stored-bytes"),
        (("tenant", "update", "default"), "nothing to change"),
        (("tenant", "show", "nobody"), "nobody"),
        (("key", "create", "app", "--expires", "soon"), "--expires"),
        (("key", "revoke", "none"), "none"),
        (("usage", "--from", "yesterday"), "start_date"),
    ],
)
async def test_what_cannot_be_done_is_said(shoal: Run, command: tuple[str, ...], said: str) -> None:
    result = await shoal(*command)
    assert isinstance(result.exception, CommandError)
    assert said in str(result.exception)


async def test_a_wrong_key_is_named_with_where_it_comes_from(
    shoal: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOAL_API_KEY", "wrong")
    result = await shoal("tenant", "list")
    assert isinstance(result.exception, CommandError)
    assert "SHOAL_API_KEY" in str(result.exception)
