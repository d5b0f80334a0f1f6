import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.cli_error import CommandError
from cluster.cli_secrets import secrets_app
from cluster.config import RedisConfig
from cluster.integration_secrets import BearerValue, IntegrationSecrets, SecretValue
from cluster.redis_client import connect
from cluster.secret_box import SecretBox
from cluster.secret_keys import ENVIRONMENT, FILE_NAME, SecretKey, SecretKeys, ensure_keys_file


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis_config: RedisConfig) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    redis = {"url": redis_config.url, "timeout_s": redis_config.timeout_s}
    models = [{"name": "chat", "source": "unused"}]
    (tmp_path / "shoal.yaml").write_text(json.dumps({"models": models, "redis": redis}))
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    ensure_keys_file(tmp_path)
    return tmp_path


def run(*arguments: str) -> str:
    result = CliRunner().invoke(secrets_app, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def store(config: RedisConfig, keys: SecretKeys, value: SecretValue | None) -> SecretValue | None:
    async def work() -> SecretValue | None:
        async with connect(config) as redis:
            secrets = IntegrationSecrets(redis, SecretBox(keys))
            if value is not None:
                await secrets.create("acme", "openai", value)
            return await secrets.value("acme", "openai")

    return asyncio.run(work())


def test_rotation_makes_a_key_and_says_what_it_did(home: Path, redis_config: RedisConfig) -> None:
    before = SecretKeys.load(home)
    store(redis_config, before, BearerValue("sk-planted"))
    assert "1 secrets encrypted anew" in run("rotate")
    after = SecretKeys.load(home)
    assert after.keys[1:] == before.keys
    assert store(redis_config, SecretKeys(after.keys[:1]), None) == BearerValue("sk-planted")


def test_keys_are_shown_by_their_ids_alone(home: Path) -> None:
    shown = run("keys")
    (key,) = SecretKeys.load(home).keys
    assert key.key_id.hex() in shown
    assert key.text() not in shown


def test_what_cannot_be_opened_is_said(home: Path, redis_config: RedisConfig) -> None:
    store(redis_config, SecretKeys((SecretKey.new(),)), BearerValue("sk-theirs"))
    with pytest.raises(CommandError, match="1 secrets cannot be opened"):
        run("rotate")


def test_keys_of_the_environment_are_not_made_here(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENVIRONMENT, SecretKey.new().text())
    with pytest.raises(CommandError, match=ENVIRONMENT):
        run("rotate")
    assert "0 secrets" in run("rotate", "--no-new-key")


def test_without_keys_the_file_is_named(home: Path) -> None:
    (home / FILE_NAME).unlink()
    with pytest.raises(CommandError, match=FILE_NAME):
        run("keys")
