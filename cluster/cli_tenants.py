"""`shoal tenant` and `shoal key`: who may use the cluster, how much of it, and with which keys."""

import re
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.cli_admin_client import open_admin_client
from cluster.cli_error import CommandError
from cluster.cli_report import show
from cluster.config import DEFAULT_TENANT
from cluster.tenant_config import KeyScope

tenant_app = typer.Typer(
    help="Tenants, and what each may use. Needs a key with the scope 'admin'.",
    epilog=(
        "Example: shoal tenant create acme --requests-per-minute 600 --stored-bytes 10GB; "
        "shoal key create app --tenant acme"
    ),
    no_args_is_help=True,
)
key_app = typer.Typer(
    help="Keys of tenants. Needs a key with the scope 'admin'.", no_args_is_help=True
)

_DEFAULT, _UNLIMITED = "default", "unlimited"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY_UNITS = {"k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_LIMITS = (
    ("requests_per_minute", "requests/min"),
    ("tokens_per_minute", "tokens/min"),
    ("concurrent_requests", "at once"),
    ("stored_bytes", "stored bytes"),
)

TenantArgument = Annotated[str, typer.Argument(metavar="TENANT", help="a-z and 0-9, at most 32.")]
URLOption = Annotated[
    str | None, typer.Option("--url", help="Another cluster's API, like http://gpu-box:8000.")
]
TenantOption = Annotated[str, typer.Option("--tenant", "-t", help="Whose key.")]
KeyArgument = Annotated[
    str, typer.Argument(metavar="KEY_ID", help="The key's id, as `shoal key list` shows it.")
]
_COUNT = "A number, 'unlimited', or 'default' for that of shoal.yaml."
RequestsOption = Annotated[str | None, typer.Option(metavar="N", help=f"To models. {_COUNT}")]
TokensOption = Annotated[
    str | None, typer.Option(metavar="N", help=f"Of prompts and answers. {_COUNT}")
]
ConcurrentOption = Annotated[
    str | None, typer.Option(metavar="N", help=f"Requests to models at once. {_COUNT}")
]
BytesOption = Annotated[
    str | None, typer.Option(metavar="SIZE", help=f"Like 500MB or 10GiB. {_COUNT}")
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="A model it may use, or a beginning like 'openai/*'; may be repeated. '*' is all, "
        "'default' what shoal.yaml says.",
    ),
]


@tenant_app.command("create")
def create_tenant(
    tenant: TenantArgument,
    *,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent_requests: ConcurrentOption = None,
    stored_bytes: BytesOption = None,
    model: ModelOption = None,
    url: URLOption = None,
) -> None:
    """Make a tenant. Limits that are not given are those of shoal.yaml."""
    counts = (requests_per_minute, tokens_per_minute, concurrent_requests, stored_bytes)
    limits = _limits(counts, model)
    with open_admin_client(url) as client:
        client.create_tenant(tenant, limits)
    typer.echo(f"created {tenant}; `shoal key create NAME --tenant {tenant}` makes a key for it")


@tenant_app.command("list")
def list_tenants(*, url: URLOption = None) -> None:
    """Every tenant and the limits that are in force for it."""
    with open_admin_client(url) as client:
        tenants = client.tenants()
    table = _table("tenant", "created", *(title for _, title in _LIMITS), "models")
    for tenant in tenants:
        table.add_row(tenant["name"], _day(tenant["created_at"]), *_shown_limits(tenant["limits"]))
    show([table])


@tenant_app.command("show")
def show_tenant(tenant: TenantArgument, *, url: URLOption = None) -> None:
    """A tenant's limits: what is in force, and what of it is the tenant's own."""
    with open_admin_client(url) as client:
        found = client.tenant(tenant)
    table = _table("limit", "in force", "its own")
    in_force = _shown_limits(found["limits"])
    own = _shown_limits(found["own_limits"], none=_DEFAULT)
    titles = [*(title for _, title in _LIMITS), "models"]
    for row in zip(titles, in_force, own, strict=True):
        table.add_row(*row)
    show([f"{found['name']}, created {_day(found['created_at'])}", table])


@tenant_app.command("update")
def update_tenant(
    tenant: TenantArgument,
    *,
    requests_per_minute: RequestsOption = None,
    tokens_per_minute: TokensOption = None,
    concurrent_requests: ConcurrentOption = None,
    stored_bytes: BytesOption = None,
    model: ModelOption = None,
    url: URLOption = None,
) -> None:
    """Change limits; those that are not given stay. They hold within seconds."""
    counts = (requests_per_minute, tokens_per_minute, concurrent_requests, stored_bytes)
    limits = _limits(counts, model)
    if not limits:
        raise CommandError("nothing to change: give a limit, like --requests-per-minute 600")
    with open_admin_client(url) as client:
        client.change_tenant(tenant, limits)
    typer.echo(f"changed {tenant}")


@tenant_app.command("delete")
def delete_tenant(
    tenant: TenantArgument,
    *,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: URLOption = None,
) -> None:
    """Delete a tenant and revoke its keys. Its buckets, files and usage stay where they are."""
    if not yes:
        typer.confirm(f"Delete {tenant} and revoke its keys?", abort=True)
    with open_admin_client(url) as client:
        deleted = client.delete_tenant(tenant)
    typer.echo(f"deleted {tenant}; {deleted['num_keys_revoked']} keys revoked")


@key_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What people call the key.")],
    *,
    tenant: TenantOption = DEFAULT_TENANT,
    scope: Annotated[
        list[KeyScope] | None,
        typer.Option("--scope", help="May be repeated; default: inference and buckets."),
    ] = None,
    expires: Annotated[
        str | None, typer.Option(metavar="TIME", help="When it ends, like 90d or 12h.")
    ] = None,
    url: URLOption = None,
) -> None:
    """Make a key. Its text is shown this once, on standard output."""
    request: dict[str, object] = {"name": name}
    if scope:
        request["scopes"] = [one.value for one in scope]
    if expires is not None:
        request["expires_in_s"] = _seconds(expires, "--expires")
    with open_admin_client(url) as client:
        made = client.create_key(tenant, request)
    _show_key(made)


@key_app.command("list")
def list_keys(*, tenant: TenantOption = DEFAULT_TENANT, url: URLOption = None) -> None:
    """A tenant's keys. Keys of shoal.yaml and SHOAL_API_KEY are not among them."""
    with open_admin_client(url) as client:
        keys = client.keys(tenant)
    table = _table("id", "name", "scopes", "created", "expires", "last used")
    for key in keys:
        expires = "never" if key["expires_at"] is None else _moment(key["expires_at"])
        table.add_row(
            *(key["id"], key["name"], ", ".join(key["scopes"]), _moment(key["created_at"])),
            "expired" if key["is_expired"] else expires,
            "never" if key["last_used_at"] is None else _moment(key["last_used_at"]),
        )
    show([table] if keys else [f"{tenant} has no keys here"])


@key_app.command("revoke")
def revoke_key(
    key_id: KeyArgument, *, tenant: TenantOption = DEFAULT_TENANT, url: URLOption = None
) -> None:
    """Delete a key; it opens nothing within seconds."""
    with open_admin_client(url) as client:
        client.delete_key(tenant, key_id)
    typer.echo(f"revoked {key_id}")


@key_app.command("rotate")
def rotate_key(
    key_id: KeyArgument,
    *,
    tenant: TenantOption = DEFAULT_TENANT,
    overlap: Annotated[
        str, typer.Option(metavar="TIME", help="How long the old key still opens, like 1h.")
    ] = "1h",
    url: URLOption = None,
) -> None:
    """Make a key in a key's place. Its text is shown this once, on standard output."""
    overlap_s = _seconds(overlap, "--overlap")
    with open_admin_client(url) as client:
        rotated = client.rotate_key(tenant, key_id, overlap_s=overlap_s)
    _show_key(rotated["new"])
    typer.echo(f"the old key {key_id} ends {_moment(rotated['old']['expires_at'])}", err=True)


def _table(first: str, *titles: str) -> Table:
    """The first column names the row: it is never cut or folded."""
    table = Table(box=None)
    table.add_column(first, no_wrap=True, overflow="ignore")
    for title in titles:
        table.add_column(title)
    return table


def _show_key(made: dict[str, Any]) -> None:
    typer.echo(
        f"key {made['id']} of {made['tenant']}, for {', '.join(made['scopes'])};"
        " it is shown this once:",
        err=True,
    )
    typer.echo(made["key"])


def _limits(counts: Sequence[str | None], models: list[str] | None) -> dict[str, object]:
    """The limits that were given, as the API takes them."""
    limits: dict[str, object] = {}
    for (name, _), text in zip(_LIMITS, counts, strict=True):
        if text is not None:
            limits[name] = _count(text, f"--{name.replace('_', '-')}")
    if models:
        limits["models"] = None if models == [_DEFAULT] else models
    return limits


def _count(text: str, option: str) -> int | str | None:
    """
    Raises:
        CommandError: it is no number.
    """
    word = text.strip().lower()
    if word == _DEFAULT:
        return None
    if word == _UNLIMITED:
        return _UNLIMITED
    match = re.fullmatch(r"(\d{1,15})(?:([kmgt])(i)?)?(?:b)?", word.replace("_", ""))
    if match is None:
        raise CommandError(
            f"{option} must be a number like 600, 2M or 10GiB, 'unlimited' or 'default';"
            f" given {text!r}"
        )
    units = _BINARY_UNITS if match[3] else _UNITS
    return int(match[1]) * units[match[2] or ""]


def _seconds(text: str, option: str) -> int:
    """
    Raises:
        CommandError: it is no time.
    """
    match = re.fullmatch(r"(\d{1,9})([smhd])", text.strip().lower())
    if match is None:
        raise CommandError(f"{option} must be like 45s, 30m, 12h or 90d; given {text!r}")
    return int(match[1]) * _SECONDS[match[2]]


def _shown_limits(limits: dict[str, Any], *, none: str = _UNLIMITED) -> list[str]:
    def shown(limit: int | str | None) -> str:
        if limit is None:
            return none
        return limit if isinstance(limit, str) else f"{limit:,}"

    every = "all" if none == _UNLIMITED else none
    models = limits["models"]
    counts = [shown(limits[name]) for name, _ in _LIMITS]
    return [*counts, every if models is None else ", ".join(models) or "none"]


def _day(unix_s: int | None) -> str:
    if unix_s is None:
        return "configured"
    return time.strftime("%Y-%m-%d", time.localtime(unix_s))


def _moment(unix_s: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(unix_s))
