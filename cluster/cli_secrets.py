"""`shoal secrets`: the keys that integration secrets are encrypted with, and their rotation."""

import asyncio
from typing import Annotated

import typer

from cluster.cli_error import CommandError
from cluster.cli_report import show
from cluster.cli_target import deployed_or_found_config
from cluster.config import RedisConfig, shoal_home
from cluster.errors import ServiceUnavailableError
from cluster.integration_secrets import IntegrationSecrets, RotationReport
from cluster.redis_client import connect
from cluster.secret_box import SecretBox
from cluster.secret_keys import SecretKeys, SecretsKeyError

secrets_app = typer.Typer(
    help="The keys that integration secrets are encrypted with.", no_args_is_help=True
)


@secrets_app.command()
def keys() -> None:
    """The ids of the keys, the one that encrypts first. The keys themselves are not shown."""
    loaded = _keys()
    place = "SHOAL_SECRETS_KEY" if loaded.path is None else str(loaded.path)
    show([place, *(key.key_id.hex() for key in loaded.keys)])


@secrets_app.command()
def rotate(
    *,
    no_new_key: Annotated[
        bool,
        typer.Option(help="Encrypt with the first key there is: for keys from SHOAL_SECRETS_KEY."),
    ] = False,
) -> None:
    """Make a new key and encrypt every integration secret with it, while the cluster runs."""
    config = deployed_or_found_config().redis
    if config.url is None:
        raise CommandError("the configuration names no Redis; say which in SHOAL_REDIS_URL")
    try:
        report = asyncio.run(_rotate(config, makes_key=not no_new_key))
    except (SecretsKeyError, ServiceUnavailableError) as error:
        raise CommandError(str(error)) from error
    show([f"{report.num_rewritten} secrets encrypted anew; {report.num_dropped_keys} keys gone"])
    if report.num_unreadable:
        raise CommandError(
            f"{report.num_unreadable} secrets cannot be opened with the keys that are here;"
            " they are as they were, and no key was dropped"
        )


async def _rotate(config: RedisConfig, *, makes_key: bool) -> RotationReport:
    async with connect(config) as redis:
        secrets = IntegrationSecrets(redis, SecretBox(_keys()))
        return await secrets.rotate(makes_key=makes_key)


def _keys() -> SecretKeys:
    """
    Raises:
        CommandError: there are none.
    """
    try:
        return SecretKeys.load(shoal_home())
    except SecretsKeyError as error:
        raise CommandError(str(error)) from error
