"""The endpoints about tenants, keys and usage: part of the table in `operations`."""

from cluster.admin_schema.tenants import (
    CreatedKey,
    KeyDeleted,
    KeyList,
    KeyRequest,
    KeyRotated,
    KeyRotation,
    TenantChange,
    TenantDeleted,
    TenantList,
    TenantObject,
    TenantRequest,
)
from cluster.admin_schema.usage import UsageAnswer
from cluster.config import TENANT_PATTERN
from cluster.tenant_config import KeyScope
from cluster.tenants.usage import UsageGroup
from deployments.ingress.operation import BODY_ERRORS, Operation, Parameter

_ADMIN = (KeyScope.ADMIN,)
_TENANTS = "/v1/admin/tenants"
_TENANT = f"{_TENANTS}/{{tenant}}"
_KEYS = f"{_TENANT}/keys"
_KEY = f"{_KEYS}/{{key_id}}"
_UNAVAILABLE = (404, 500, 503)  # 404: also where there is no Redis

CREATE_TENANT = Operation(
    name="create_tenant",
    summary="Make a tenant, with limits of its own where wanted",
    paths=(_TENANTS,),
    scopes=_ADMIN,
    requests=(TenantRequest,),
    answer=TenantObject,
    success=201,
    errors=(*BODY_ERRORS, 409, 500, 503),
)
TENANTS = Operation(
    name="tenants",
    summary="Every tenant and its limits, by name",
    method="GET",
    paths=(_TENANTS,),
    scopes=_ADMIN,
    answer=TenantList,
    errors=_UNAVAILABLE,
)
ONE_TENANT = Operation(
    name="one_tenant",
    summary="A tenant and its limits",
    method="GET",
    paths=(_TENANT,),
    scopes=_ADMIN,
    answer=TenantObject,
    errors=_UNAVAILABLE,
)
CHANGE_TENANT = Operation(
    name="change_tenant",
    summary="Change limits of a tenant; null brings the default back",
    method="PATCH",
    paths=(_TENANT,),
    scopes=_ADMIN,
    requests=(TenantChange,),
    answer=TenantObject,
    errors=(*BODY_ERRORS, 500, 503),
)
DELETE_TENANT = Operation(
    name="delete_tenant",
    summary="Delete a tenant and revoke its keys; what it has stored stays",
    method="DELETE",
    paths=(_TENANT,),
    scopes=_ADMIN,
    answer=TenantDeleted,
    errors=(400, *_UNAVAILABLE),
)
CREATE_KEY = Operation(
    name="create_key",
    summary="Make a key of a tenant; its text is in this answer and nowhere else",
    paths=(_KEYS,),
    scopes=_ADMIN,
    requests=(KeyRequest,),
    answer=CreatedKey,
    success=201,
    errors=(*BODY_ERRORS, 500, 503),
)
KEYS = Operation(
    name="keys",
    summary="A tenant's keys without their texts, the oldest first",
    method="GET",
    paths=(_KEYS,),
    scopes=_ADMIN,
    answer=KeyList,
    errors=_UNAVAILABLE,
)
DELETE_KEY = Operation(
    name="delete_key",
    summary="Revoke a key; it opens nothing within seconds",
    method="DELETE",
    paths=(_KEY,),
    scopes=_ADMIN,
    answer=KeyDeleted,
    errors=_UNAVAILABLE,
)
ROTATE_KEY = Operation(
    name="rotate_key",
    summary="Make a key in a key's place, which lives on for `overlap_s`",
    paths=(f"{_KEY}/rotate",),
    scopes=_ADMIN,
    requests=(KeyRotation,),
    answer=KeyRotated,
    success=201,
    errors=(*BODY_ERRORS, 500, 503),
)
ADMIN_OPERATIONS = (
    CREATE_TENANT,
    TENANTS,
    ONE_TENANT,
    CHANGE_TENANT,
    DELETE_TENANT,
    CREATE_KEY,
    KEYS,
    DELETE_KEY,
    ROTATE_KEY,
)

_DATE = {"type": "string", "format": "date"}
_USAGE_QUERY = (
    Parameter(name="start_date", schema=_DATE),
    Parameter(name="end_date", schema=_DATE),
    Parameter(
        name="group_by",
        schema={"type": "array", "items": {"enum": [group.value for group in UsageGroup]}},
    ),
)
_USAGE_ERRORS = (422, *_UNAVAILABLE)

ALL_USAGE = Operation(
    name="all_usage",
    summary="What tenants have used, by day, tenant, model and key",
    method="GET",
    paths=("/v1/admin/usage",),
    scopes=_ADMIN,
    parameters=(
        *_USAGE_QUERY,
        Parameter(name="tenant", schema={"type": "string", "pattern": TENANT_PATTERN}),
    ),
    answer=UsageAnswer,
    errors=_USAGE_ERRORS,
)
OWN_USAGE = Operation(
    name="own_usage",
    summary="What the key's tenant has used, by day, model and key",
    method="GET",
    paths=("/v1/usage",),
    scopes=(),
    parameters=_USAGE_QUERY,
    answer=UsageAnswer,
    errors=_USAGE_ERRORS,
)
USAGE_OPERATIONS = (ALL_USAGE, OWN_USAGE)
TENANT_OPERATIONS = (*ADMIN_OPERATIONS, *USAGE_OPERATIONS)
