"""`GET /v1/usage` and `/v1/admin/usage`: what was used, in rows."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel

from cluster.tenants.usage import UsageCounts, UsageGroup, UsageRow

GroupName = Literal["day", "tenant", "model", "key"]


class UsageTotals(BaseModel):
    """`prompt_tokens` has the cached ones in it. Requests are those that were run, to their end or
    not."""

    num_requests: int
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, counts: UsageCounts) -> "UsageTotals":
        return cls(**counts._asdict(), total_tokens=counts.num_tokens)


class UsageObject(UsageTotals):
    """null: rows are not told apart by it."""

    day: str | None  # 2026-11-26, UTC
    tenant: str | None
    model: str | None
    key: str | None  # a key's id; of one of the configuration `config/NAME`

    @classmethod
    def row(cls, row: UsageRow) -> "UsageObject":
        return cls(
            day=row.day or None,
            tenant=row.tenant or None,
            model=row.model or None,
            key=row.key_id or None,
            **row.counts._asdict(),
            total_tokens=row.counts.num_tokens,
        )


class UsageAnswer(BaseModel):
    object: Literal["list"] = "list"
    start_date: str  # both days are in it
    end_date: str
    group_by: list[GroupName]
    data: list[UsageObject]
    total: UsageTotals

    @classmethod
    def of(
        cls, rows: Sequence[UsageRow], groups: Sequence[UsageGroup], *, start: str, end: str
    ) -> "UsageAnswer":
        total = UsageCounts()
        for row in rows:
            total = total.plus(row.counts)
        return cls(
            start_date=start,
            end_date=end,
            group_by=[group.value for group in groups],
            data=[UsageObject.row(row) for row in rows],
            total=UsageTotals.of(total),
        )
