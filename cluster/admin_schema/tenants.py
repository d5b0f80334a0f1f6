"""`/v1/admin/tenants`: tenants, their limits and their keys, as administrators see them."""

import time
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from cluster.config import TENANT_PATTERN
from cluster.errors import FieldProblem
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import Checked, integer, refusal
from cluster.tenant_config import PLAIN_SCOPES, KeyScope
from cluster.tenants.limits import UNLIMITED, OwnLimits, TenantLimits
from cluster.tenants.records import KeyRecord, NewKey, TenantRecord

MAX_LIMIT = 10**15
MAX_PATTERNS = 100
MAX_KEY_LIFE_S = 10 * 366 * 24 * 3600
DEFAULT_OVERLAP_S, MAX_OVERLAP_S = 3600, 90 * 24 * 3600
_ALLOWED = f"must be an integer in [0, {MAX_LIMIT}], {UNLIMITED!r}, or null for the default"

ScopeName = Literal["inference", "buckets", "admin"]


def _limit(value: object) -> int | str:
    if value == UNLIMITED and isinstance(value, str):
        return UNLIMITED
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise refusal(_ALLOWED, value, kind="integer_type")
    if not 0 <= value <= MAX_LIMIT:
        raise refusal(_ALLOWED, value, kind="out_of_range")
    return value


_INTEGER = {"type": "integer", "minimum": 0, "maximum": MAX_LIMIT}
Limit = Annotated[Any, Checked(_limit, {"anyOf": [_INTEGER, {"const": UNLIMITED}]})]
Pattern = Annotated[str, Field(min_length=1, max_length=200)]


class LimitFields(Fields):
    """Limits of one tenant. One that is not given stays as it is; null: the default holds."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent_requests: Limit | None = None
    stored_bytes: Limit | None = None
    models: Annotated[list[Pattern], Field(max_length=MAX_PATTERNS)] | None = None  # `openai/*`

    def over(self, own: OwnLimits) -> OwnLimits:
        """A tenant's limits with these changes."""
        fields = {name: getattr(own, name) for name in OwnLimits.__struct_fields__}
        for name in self.model_fields_set:
            value = getattr(self, name)
            fields[name] = tuple(value) if isinstance(value, list) else value
        return OwnLimits(**fields)


class TenantRequest(Fields):
    """`POST /v1/admin/tenants`"""

    name: Annotated[str, Field(pattern=TENANT_PATTERN)]
    limits: LimitFields = LimitFields()

    def problems(self) -> list[FieldProblem]:
        return []


class TenantChange(Fields):
    """`PATCH /v1/admin/tenants/{tenant}`"""

    limits: LimitFields

    def problems(self) -> list[FieldProblem]:
        return []


class KeyRequest(Fields):
    """`POST /v1/admin/tenants/{tenant}/keys`"""

    name: Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[^\x00-\x1f\x7f]+$")]
    scopes: Annotated[list[ScopeName], Field(min_length=1, max_length=3)] = Field(
        default_factory=lambda: [scope.value for scope in PLAIN_SCOPES]
    )
    expires_in_s: Annotated[int, integer(low=1, high=MAX_KEY_LIFE_S)] | None = None  # null: never

    def problems(self) -> list[FieldProblem]:
        return []

    @property
    def key_scopes(self) -> tuple[KeyScope, ...]:
        return tuple(sorted({KeyScope(name) for name in self.scopes}))

    @property
    def expires_at(self) -> float | None:
        if self.expires_in_s is None:
            return None
        return round(time.time() + self.expires_in_s, 3)


class KeyRotation(Fields):
    """`POST /v1/admin/tenants/{tenant}/keys/{key_id}/rotate`"""

    overlap_s: Annotated[int, integer(low=0, high=MAX_OVERLAP_S)] = DEFAULT_OVERLAP_S

    def problems(self) -> list[FieldProblem]:
        return []


class LimitsObject(BaseModel):
    """Limits as they are in force; null: no limit."""

    requests_per_minute: int | None
    tokens_per_minute: int | None
    concurrent_requests: int | None
    stored_bytes: int | None
    models: list[str] | None


class OwnLimitsObject(BaseModel):
    """What was set for the tenant; null: the default holds."""

    requests_per_minute: int | Literal["unlimited"] | None
    tokens_per_minute: int | Literal["unlimited"] | None
    concurrent_requests: int | Literal["unlimited"] | None
    stored_bytes: int | Literal["unlimited"] | None
    models: list[str] | None


class TenantObject(BaseModel):
    object: Literal["tenant"] = "tenant"
    name: str
    created_at: int | None  # Unix time; null: the configuration names it
    limits: LimitsObject
    own_limits: OwnLimitsObject

    @classmethod
    def of(cls, record: TenantRecord, defaults: TenantLimits) -> "TenantObject":
        in_force = record.limits.over(defaults)
        return cls(
            name=record.name,
            created_at=None if record.created_at is None else int(record.created_at),
            limits=LimitsObject(**_fields(in_force)),
            own_limits=OwnLimitsObject(**_fields(record.limits)),
        )


class TenantList(BaseModel):
    object: Literal["list"] = "list"
    data: list[TenantObject]


class TenantDeleted(BaseModel):
    object: Literal["tenant"] = "tenant"
    name: str
    deleted: Literal[True] = True
    num_keys_revoked: int


class KeyObject(BaseModel):
    """A key without its text."""

    object: Literal["api_key"] = "api_key"
    id: str
    tenant: str
    name: str
    scopes: list[ScopeName]
    created_at: int  # Unix time
    expires_at: int | None
    is_expired: bool
    last_used_at: int | None  # to some minutes

    @classmethod
    def of(cls, record: KeyRecord, last_used_at: float | None = None) -> "KeyObject":
        return cls(**_key_fields(record, last_used_at))


class KeyList(BaseModel):
    object: Literal["list"] = "list"
    data: list[KeyObject]


class CreatedKey(KeyObject):
    """A key that was just made: the only answer with its text."""

    key: str

    @classmethod
    def made(cls, new: NewKey) -> "CreatedKey":
        return cls(key=new.text, **_key_fields(new.record, None))


class KeyRotated(BaseModel):
    """The new key, and the old one with the time that it ends."""

    object: Literal["api_key.rotation"] = "api_key.rotation"
    new: CreatedKey
    old: KeyObject


class KeyDeleted(BaseModel):
    object: Literal["api_key"] = "api_key"
    id: str
    deleted: Literal[True] = True


def _fields(limits: TenantLimits | OwnLimits) -> dict[str, Any]:
    fields = {name: getattr(limits, name) for name in limits.__struct_fields__}
    return fields | {"models": None if limits.models is None else list(limits.models)}


def _key_fields(record: KeyRecord, last_used_at: float | None) -> dict[str, Any]:
    return {
        "id": record.key_id,
        "tenant": record.tenant,
        "name": record.name,
        "scopes": [scope.value for scope in record.scopes],
        "created_at": int(record.created_at),
        "expires_at": None if record.expires_at is None else int(record.expires_at),
        "is_expired": record.is_expired(),
        "last_used_at": None if last_used_at is None else int(last_used_at),
    }
