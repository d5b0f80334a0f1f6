"""`GET /v1/usage` and `/v1/admin/usage`: what a tenant, or all of them, have used."""

import datetime
from collections.abc import Sequence
from typing import NamedTuple

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.admin_schema.usage import UsageAnswer
from cluster.errors import FieldProblem, NotFoundError, ValidationError
from cluster.tenants.usage import MAX_DAYS, UsageGroup, UsageStore, grouped
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.operation import Operation
from deployments.ingress.query_parameters import read_choices, read_date
from deployments.ingress.tenant_operations import ALL_USAGE, OWN_USAGE, USAGE_OPERATIONS

ALL_ROUTE = "/v1/admin/usage"
OWN_ROUTE = "/v1/usage"
DEFAULT_DAYS = 30
_GROUPS = {group.value: [group] for group in UsageGroup}


class _Question(NamedTuple):
    first: datetime.date
    last: datetime.date
    groups: list[UsageGroup]


def usage_endpoints(usage: UsageStore | None) -> dict[Operation, ASGIApp]:
    """What serves the operations about usage; None: there is no Redis."""
    if usage is None:
        return dict.fromkeys(USAGE_OPERATIONS, UsageIsOff())
    return {ALL_USAGE: AllUsage(usage), OWN_USAGE: OwnUsage(usage)}


class UsageIsOff:
    """Where nothing keeps it."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError("Usage is not kept here: there is no Redis.")


class AllUsage:
    """`GET /v1/admin/usage`, an ASGI app."""

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope[SCOPE_KEY].route = ALL_ROUTE
        question = _question(scope)
        tenant = Request(scope).query_params.get("tenant")
        tenants = await self._usage.tenants() if tenant is None else [tenant]
        await _answer(self._usage, question, tenants, send)


class OwnUsage:
    """`GET /v1/usage`, an ASGI app."""

    def __init__(self, usage: UsageStore) -> None:
        self._usage = usage

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange: Exchange = scope[SCOPE_KEY]
        exchange.route = OWN_ROUTE
        await _answer(self._usage, _question(scope), [exchange.tenant], send)


def _question(scope: Scope) -> _Question:
    """
    Raises:
        ValidationError: days or groups are wrong.
    """
    today = datetime.datetime.now(datetime.UTC).date()
    last = read_date(scope, "end_date", default=today)
    try:
        month_before = last - datetime.timedelta(days=DEFAULT_DAYS - 1)
    except OverflowError:
        month_before = last
    first = read_date(scope, "start_date", default=month_before)
    num_days = (last - first).days + 1
    if not 1 <= num_days <= MAX_DAYS:
        message = (
            f"must not be after end_date, and at most {MAX_DAYS} days with it; given {first} to"
            f" {last}"
        )
        problem = FieldProblem(loc=("start_date",), message=message, place="query")
        raise ValidationError([problem])
    groups = read_choices(scope, "group_by", _GROUPS, default=[group.value for group in UsageGroup])
    return _Question(first, last, groups)


async def _answer(
    usage: UsageStore, question: _Question, tenants: Sequence[str], send: Send
) -> None:
    rows = await usage.find(tenants, first=question.first, last=question.last)
    answer = UsageAnswer.of(
        grouped(rows, question.groups),
        question.groups,
        start=question.first.isoformat(),
        end=question.last.isoformat(),
    )
    await send_json(send, answer.model_dump_json().encode())
