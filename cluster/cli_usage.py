"""`shoal usage`: what tenants have used, as a table or as CSV."""

import csv
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from cluster.cli_admin_client import open_admin_client
from cluster.cli_report import show
from cluster.tenants.usage import UsageGroup

_COUNTS = ("num_requests", "prompt_tokens", "cached_tokens", "completion_tokens", "total_tokens")


def usage(
    *,
    start: Annotated[
        str | None, typer.Option("--from", metavar="DAY", help="Like 2026-11-01; default: 30 days.")
    ] = None,
    end: Annotated[
        str | None, typer.Option("--to", metavar="DAY", help="The last day; default: today, UTC.")
    ] = None,
    by: Annotated[
        list[UsageGroup] | None,
        typer.Option("--by", help="What rows are told apart by; may be repeated. Default: all."),
    ] = None,
    tenant: Annotated[str | None, typer.Option("--tenant", "-t", help="Only this one.")] = None,
    own: Annotated[
        bool, typer.Option("--own", help="Of the key's own tenant; needs no scope 'admin'.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="For a program.")] = False,
    url: Annotated[
        str | None, typer.Option(help="Another cluster's API, like http://gpu-box:8000.")
    ] = None,
) -> None:
    """Show requests and tokens by day, tenant, model and key."""
    groups = list(dict.fromkeys(by or UsageGroup))
    query = {"start_date": start, "end_date": end, "tenant": None if own else tenant}
    query["group_by"] = ",".join(groups)
    with open_admin_client(url) as client:
        answer = client.usage({k: v for k, v in query.items() if v is not None}, is_own=own)
    if as_csv:
        _write_csv(answer, groups)
    else:
        show([f"{answer['start_date']} to {answer['end_date']}", _table(answer, groups)])


def _write_csv(answer: dict[str, Any], groups: list[UsageGroup]) -> None:
    writer = csv.writer(sys.stdout)
    columns = [*groups, *_COUNTS]
    writer.writerow(columns)
    for row in answer["data"]:
        writer.writerow([_plain(row[column]) for column in columns])


def _plain(value: object) -> object:
    """A spreadsheet must not take a name for a formula."""
    is_formula = isinstance(value, str) and value.startswith(("=", "+", "-", "@", "\t", "\r"))
    return f"'{value}" if is_formula else value


def _table(answer: dict[str, Any], groups: list[UsageGroup]) -> Table:
    table = Table(box=None)
    for group in groups:
        table.add_column(group.value, no_wrap=True, overflow="ignore")
    for title in ("requests", "prompt", "cached", "completion", "tokens"):
        table.add_column(title, justify="right")
    for row in answer["data"]:
        table.add_row(*(row[group] for group in groups), *_numbers(row))
    table.add_row(*("total", *("" for _ in groups[1:])), *_numbers(answer["total"]))
    return table


def _numbers(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:,}" for name in _COUNTS]
