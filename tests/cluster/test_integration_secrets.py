import asyncio
from pathlib import Path

import pytest

from cluster.errors import BadRequestError, NotFoundError
from cluster.integration_secrets import (
    MAX_SECRETS,
    BasicValue,
    BearerValue,
    DuplicateSecretError,
    IntegrationSecrets,
    SecretType,
)
from cluster.redis_client import RedisClient
from cluster.secret_box import SecretBox, SecretSealedError
from cluster.secret_keys import FILE_NAME, SecretKey, SecretKeys, SecretsKeyError, ensure_keys_file

OPENAI = BearerValue("sk-planted-token")


def secrets_of(redis: RedisClient, home: Path) -> IntegrationSecrets:
    return IntegrationSecrets(redis, SecretBox(SecretKeys.load(home)))


@pytest.fixture
async def secrets(redis_client: RedisClient, tmp_path: Path) -> IntegrationSecrets:
    ensure_keys_file(tmp_path)
    return secrets_of(redis_client, tmp_path)


async def test_values_come_back_as_they_were(secrets: IntegrationSecrets) -> None:
    login = BasicValue("me", "pässword with: everything")
    await secrets.create("acme", "openai", OPENAI)
    await secrets.create("acme", "intercom", login)
    assert await secrets.value("acme", "openai") == OPENAI
    assert await secrets.value("acme", "intercom") == login
    assert await secrets.value("acme", "nothing") is None


async def test_tenants_do_not_see_each_others_secrets(secrets: IntegrationSecrets) -> None:
    mine = await secrets.create("acme", "openai", OPENAI)
    await secrets.create("other", "openai", BearerValue("sk-theirs"))
    assert (await secrets.find("other", secret_type=None, offset=0, limit=9)).num_total == 1
    with pytest.raises(NotFoundError):
        await secrets.delete("other", mine.secret_id)
    assert await secrets.value("acme", "openai") == OPENAI
    assert await secrets.value("other", "openai") == BearerValue("sk-theirs")


async def test_of_many_who_want_an_identifier_at_once_one_gets_it(
    secrets: IntegrationSecrets,
) -> None:
    tries = [secrets.create("acme", "openai", BearerValue(f"sk-{i}")) for i in range(20)]
    outcomes = await asyncio.gather(*tries, return_exceptions=True)
    assert sum(isinstance(outcome, DuplicateSecretError) for outcome in outcomes) == 19
    assert (await secrets.find("acme", secret_type=None, offset=0, limit=9)).num_total == 1


async def test_a_deleted_identifier_is_free_again(secrets: IntegrationSecrets) -> None:
    record = await secrets.create("acme", "openai", OPENAI)
    await secrets.delete("acme", record.secret_id)
    assert await secrets.value("acme", "openai") is None
    with pytest.raises(NotFoundError):
        await secrets.delete("acme", record.secret_id)
    await secrets.create("acme", "openai", BearerValue("sk-new"))
    assert await secrets.value("acme", "openai") == BearerValue("sk-new")


async def test_lists_are_filtered_by_type_and_cut_into_pages(secrets: IntegrationSecrets) -> None:
    for number in range(5):
        await secrets.create("acme", f"bearer {number}", OPENAI)
    await secrets.create("acme", "basic", BasicValue("me", "password"))
    page = await secrets.find("acme", secret_type=SecretType.BEARER, offset=4, limit=4)
    assert (len(page.records), page.num_total) == (1, 5)
    page = await secrets.find("acme", secret_type=SecretType.BASIC, offset=0, limit=4)
    assert [record.identifier for record in page.records] == ["basic"]


async def test_a_tenant_has_so_many_secrets_and_no_more(
    secrets: IntegrationSecrets, redis_client: RedisClient
) -> None:
    records = redis_client.key("{secrets/acme}", "records")
    filler = [part for number in range(MAX_SECRETS) for part in (f"filler {number}", "{}")]
    await redis_client.execute("HSET", records, *filler)
    with pytest.raises(BadRequestError, match="1000 secrets already"):
        await secrets.create("acme", "one more", OPENAI)


async def test_a_value_put_in_another_ones_place_does_not_open(
    secrets: IntegrationSecrets, redis_client: RedisClient
) -> None:
    await secrets.create("acme", "openai", OPENAI)
    await secrets.create("acme", "other", BearerValue("sk-other"))
    sealed = redis_client.key("{secrets/acme}", "sealed")
    stolen = await redis_client.execute("HGET", sealed, "openai")
    await redis_client.execute("HSET", sealed, "other", stolen)
    with pytest.raises(SecretSealedError):
        await secrets.value("acme", "other")


async def test_rotation_rewrites_everything_while_others_read_and_write(
    secrets: IntegrationSecrets, redis_client: RedisClient, tmp_path: Path
) -> None:
    elsewhere = secrets_of(redis_client, tmp_path)  # another process, with the keys of before
    for tenant in ("acme", "other"):
        for number in range(20):
            await secrets.create(tenant, f"key {number}", BearerValue(f"sk-{tenant}-{number}"))
    is_over = asyncio.Event()

    async def use() -> int:
        number = 0
        while not is_over.is_set() or number < 20:
            await elsewhere.create("busy", f"key {number}", BearerValue(f"sk-{number}"))
            assert await elsewhere.value("busy", f"key {number}") is not None
            value = await elsewhere.value("acme", f"key {number % 20}")
            assert value == BearerValue(f"sk-acme-{number % 20}")
            number += 1
        return number

    using = asyncio.create_task(use())
    report = await secrets.rotate()
    is_over.set()
    num_made = await using
    assert report.num_rewritten >= 40
    assert report.num_unreadable == 0
    assert await secrets.rotate(makes_key=False) == (0, 0, 0), "nothing is left to rewrite"
    assert await elsewhere.value("busy", f"key {num_made - 1}") is not None


async def test_keys_of_before_the_last_rotation_go(
    secrets: IntegrationSecrets, redis_client: RedisClient, tmp_path: Path
) -> None:
    await secrets.create("acme", "openai", OPENAI)
    path = tmp_path / FILE_NAME
    first = path.read_text()
    await secrets.rotate()
    assert path.read_text().splitlines()[1:] == first.splitlines()
    report = await secrets.rotate()
    assert report.num_dropped_keys == 1
    assert len(path.read_text().splitlines()) == 2
    assert first.strip() not in path.read_text()
    assert await secrets_of(redis_client, tmp_path).value("acme", "openai") == OPENAI


async def test_no_key_goes_while_a_secret_cannot_be_opened(
    secrets: IntegrationSecrets, redis_client: RedisClient, tmp_path: Path
) -> None:
    stranger = IntegrationSecrets(redis_client, SecretBox(SecretKeys((SecretKey.new(),))))
    await stranger.create("acme", "theirs", OPENAI)
    await secrets.create("acme", "ours", OPENAI)
    await secrets.rotate()
    report = await secrets.rotate()
    assert report == (1, 1, 0)
    assert len((tmp_path / FILE_NAME).read_text().splitlines()) == 3
    with pytest.raises(SecretSealedError, match="is not here"):
        await secrets.value("acme", "theirs")


async def test_keys_from_the_environment_are_rotated_by_their_order(
    redis_client: RedisClient,
) -> None:
    old, new = SecretKey.new(), SecretKey.new()
    before = IntegrationSecrets(redis_client, SecretBox(SecretKeys((old,))))
    await before.create("acme", "openai", OPENAI)
    with pytest.raises(SecretsKeyError, match="SHOAL_SECRETS_KEY"):
        await before.rotate()
    between = IntegrationSecrets(redis_client, SecretBox(SecretKeys((new, old))))
    assert (await between.rotate(makes_key=False)).num_rewritten == 1
    after = IntegrationSecrets(redis_client, SecretBox(SecretKeys((new,))))
    assert await after.value("acme", "openai") == OPENAI


async def test_redis_has_no_value_in_clear(
    secrets: IntegrationSecrets, redis_client: RedisClient
) -> None:
    await secrets.create("acme", "openai", OPENAI)
    await secrets.create("acme", "login", BasicValue("planted-user", "planted-password"))
    for kind in ("ids", "records", "sealed"):
        everything = repr(
            await redis_client.execute("HGETALL", redis_client.key("{secrets/acme}", kind))
        )
        assert "planted" not in everything


def test_values_do_not_show_themselves() -> None:
    shown = repr([OPENAI, BasicValue("planted-user", "planted-password")])
    assert "planted" not in shown
