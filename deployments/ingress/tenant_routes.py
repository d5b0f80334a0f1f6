"""`/v1/admin/tenants`: tenants, their limits and their keys, for keys with the scope `admin`."""

from pydantic import BaseModel
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.admin_schema.tenants import (
    CreatedKey,
    KeyDeleted,
    KeyList,
    KeyObject,
    KeyRequest,
    KeyRotated,
    KeyRotation,
    TenantChange,
    TenantDeleted,
    TenantList,
    TenantObject,
    TenantRequest,
)
from cluster.audit import Act, audited
from cluster.errors import NotFoundError
from cluster.openai_schema.validation import parse_request
from cluster.tenants.limits import OwnLimits, TenantLimits
from cluster.tenants.tenant_store import TenantStore
from deployments.ingress import tenant_operations as operations
from deployments.ingress.errors import send_json
from deployments.ingress.exchange import SCOPE_KEY, Exchange
from deployments.ingress.operation import Operation
from deployments.ingress.request_body import read_json
from deployments.ingress.services import TenantServices

TENANTS_ROUTE = "/v1/admin/tenants"
TENANT_ROUTE = "/v1/admin/tenants/{tenant}"
KEYS_ROUTE = "/v1/admin/tenants/{tenant}/keys"
KEY_ROUTE = "/v1/admin/tenants/{tenant}/keys/{key_id}"
ROTATE_ROUTE = "/v1/admin/tenants/{tenant}/keys/{key_id}/rotate"


def tenant_endpoints(tenants: TenantServices, *, max_body_bytes: int) -> dict[Operation, ASGIApp]:
    """What serves the operations about tenants."""
    if tenants.store is None:
        return dict.fromkeys(operations.ADMIN_OPERATIONS, TenantsAreOff())
    store, defaults = tenants.store, tenants.keys.default_limits
    return {
        operations.CREATE_TENANT: CreateTenant(store, defaults, max_body_bytes=max_body_bytes),
        operations.TENANTS: ListTenants(store, defaults),
        operations.ONE_TENANT: OneTenant(store, defaults),
        operations.CHANGE_TENANT: ChangeTenant(store, defaults, max_body_bytes=max_body_bytes),
        operations.DELETE_TENANT: DeleteTenant(store),
        operations.CREATE_KEY: CreateKey(store, max_body_bytes=max_body_bytes),
        operations.KEYS: ListKeys(store),
        operations.DELETE_KEY: DeleteKey(store),
        operations.ROTATE_KEY: RotateKey(store, max_body_bytes=max_body_bytes),
    }


class TenantsAreOff:
    """Every operation about tenants, where nothing can keep them."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise NotFoundError("Tenants and keys are those of the configuration: there is no Redis.")


class CreateTenant:
    """`POST /v1/admin/tenants`, an ASGI app."""

    def __init__(self, store: TenantStore, defaults: TenantLimits, *, max_body_bytes: int) -> None:
        self._store = store
        self._defaults = defaults
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, TENANTS_ROUTE)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(TenantRequest, body)
        with audited(Act.TENANT_CREATED, f"tenant {request.name}"):
            limits = request.limits.over(OwnLimits())
            record = await self._store.create_tenant(request.name, limits)
        await _send(send, TenantObject.of(record, self._defaults), status=201)


class ListTenants:
    """`GET /v1/admin/tenants`, an ASGI app."""

    def __init__(self, store: TenantStore, defaults: TenantLimits) -> None:
        self._store = store
        self._defaults = defaults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, TENANTS_ROUTE)
        records = await self._store.tenants()
        await _send(send, TenantList(data=[TenantObject.of(r, self._defaults) for r in records]))


class OneTenant:
    """`GET /v1/admin/tenants/{tenant}`, an ASGI app."""

    def __init__(self, store: TenantStore, defaults: TenantLimits) -> None:
        self._store = store
        self._defaults = defaults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, TENANT_ROUTE)
        record = await self._store.tenant(_in_path(scope, "tenant"))
        await _send(send, TenantObject.of(record, self._defaults))


class ChangeTenant:
    """`PATCH /v1/admin/tenants/{tenant}`, an ASGI app."""

    def __init__(self, store: TenantStore, defaults: TenantLimits, *, max_body_bytes: int) -> None:
        self._store = store
        self._defaults = defaults
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, TENANT_ROUTE)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(TenantChange, body)
        name = _in_path(scope, "tenant")
        with audited(Act.TENANT_CHANGED, f"tenant {name}"):
            record = await self._store.change_limits(name, request.limits.over)
        await _send(send, TenantObject.of(record, self._defaults))


class DeleteTenant:
    """`DELETE /v1/admin/tenants/{tenant}`, an ASGI app."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, TENANT_ROUTE)
        name = _in_path(scope, "tenant")
        with audited(Act.TENANT_DELETED, f"tenant {name}") as act:
            num_keys = await self._store.delete_tenant(name)
            act.target += f" with {num_keys} keys"
        await _send(send, TenantDeleted(name=name, num_keys_revoked=num_keys))


class CreateKey:
    """`POST /v1/admin/tenants/{tenant}/keys`, an ASGI app."""

    def __init__(self, store: TenantStore, *, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, KEYS_ROUTE)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(KeyRequest, body)
        tenant = _in_path(scope, "tenant")
        with audited(Act.KEY_CREATED, f"key of tenant {tenant}") as act:
            new = await self._store.create_key(
                tenant,
                request.name,
                scopes=request.key_scopes,
                expires_at=request.expires_at,
            )
            act.target = f"key {new.record.key_id} of tenant {tenant}"
        await _send(send, CreatedKey.made(new), status=201)


class ListKeys:
    """`GET /v1/admin/tenants/{tenant}/keys`, an ASGI app."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, KEYS_ROUTE)
        listed = await self._store.keys(_in_path(scope, "tenant"))
        objects = [KeyObject.of(key.record, key.last_used_at) for key in listed]
        await _send(send, KeyList(data=objects))


class DeleteKey:
    """`DELETE /v1/admin/tenants/{tenant}/keys/{key_id}`, an ASGI app."""

    def __init__(self, store: TenantStore) -> None:
        self._store = store

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, KEY_ROUTE)
        tenant, key_id = _in_path(scope, "tenant"), _in_path(scope, "key_id")
        with audited(Act.KEY_REVOKED, f"key {key_id} of tenant {tenant}"):
            await self._store.delete_key(tenant, key_id)
        await _send(send, KeyDeleted(id=key_id))


class RotateKey:
    """`POST /v1/admin/tenants/{tenant}/keys/{key_id}/rotate`, an ASGI app."""

    def __init__(self, store: TenantStore, *, max_body_bytes: int) -> None:
        self._store = store
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        _routed(scope, ROTATE_ROUTE)
        body = await read_json(scope, receive, max_body_bytes=self._max_body_bytes)
        request = parse_request(KeyRotation, body)
        tenant, key_id = _in_path(scope, "tenant"), _in_path(scope, "key_id")
        with audited(Act.KEY_ROTATED, f"key {key_id} of tenant {tenant}") as act:
            new, old = await self._store.rotate_key(tenant, key_id, overlap_s=request.overlap_s)
            act.target += f" to key {new.record.key_id}"
        rotated = KeyRotated(new=CreatedKey.made(new), old=KeyObject.of(old))
        await _send(send, rotated, status=201)


def _routed(scope: Scope, route: str) -> None:
    exchange: Exchange = scope[SCOPE_KEY]
    exchange.route = route


def _in_path(scope: Scope, name: str) -> str:
    return str(Request(scope).path_params[name])


async def _send(send: Send, answer: BaseModel, *, status: int = 200) -> None:
    await send_json(send, answer.model_dump_json().encode(), status=status)
