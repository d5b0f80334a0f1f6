"""The admin API over HTTP as `shoal tenant`, `shoal key` and `shoal usage` use it."""

from typing import Any
from urllib.parse import quote

import httpx
import orjson

from cluster.cli_chat import refusal
from cluster.cli_connection import APIConnection
from cluster.cli_error import CommandError
from cluster.cli_target import api_url, deployed_or_found_config, read_api_key

TENANTS_PATH = "/v1/admin/tenants"
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds


class AdminClient(APIConnection):
    """Connections to one cluster; a context manager. Every method may raise CommandError."""

    def __init__(self, base_url: str, *, api_key: str | None) -> None:
        super().__init__(base_url, api_key=api_key, timeout=_TIMEOUT)

    def create_tenant(self, name: str, limits: dict[str, object]) -> dict[str, Any]:
        return self._ask("POST", TENANTS_PATH, json={"name": name, "limits": limits})

    def tenants(self) -> list[dict[str, Any]]:
        return list(self._ask("GET", TENANTS_PATH)["data"])

    def tenant(self, name: str) -> dict[str, Any]:
        return self._ask("GET", _tenant_path(name))

    def change_tenant(self, name: str, limits: dict[str, object]) -> dict[str, Any]:
        return self._ask("PATCH", _tenant_path(name), json={"limits": limits})

    def delete_tenant(self, name: str) -> dict[str, Any]:
        return self._ask("DELETE", _tenant_path(name))

    def create_key(self, tenant: str, request: dict[str, object]) -> dict[str, Any]:
        return self._ask("POST", f"{_tenant_path(tenant)}/keys", json=request)

    def keys(self, tenant: str) -> list[dict[str, Any]]:
        return list(self._ask("GET", f"{_tenant_path(tenant)}/keys")["data"])

    def delete_key(self, tenant: str, key_id: str) -> None:
        self._ask("DELETE", _key_path(tenant, key_id))

    def rotate_key(self, tenant: str, key_id: str, *, overlap_s: int) -> dict[str, Any]:
        path = f"{_key_path(tenant, key_id)}/rotate"
        return self._ask("POST", path, json={"overlap_s": overlap_s})

    def usage(self, query: dict[str, str], *, is_own: bool) -> dict[str, Any]:
        """Of all tenants, or of the key's own."""
        return self._ask("GET", "/v1/usage" if is_own else "/v1/admin/usage", params=query)

    def _ask(self, method: str, path: str, **how: Any) -> dict[str, Any]:
        try:
            response = self._http.request(method, path, **how)
        except httpx.ConnectError as error:
            raise CommandError(
                f"nothing answers at {self._base_url}; `shoal up` starts a cluster"
            ) from error
        except httpx.TransportError as error:
            raise CommandError(f"no answer from {self._base_url}: {error}") from error
        if not response.is_success:
            raise CommandError(refusal(response.status_code, response.content))
        try:
            answer = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            raise CommandError(f"{self._base_url} gave an answer that is not Shoal's")
        return answer


def open_admin_client(url: str | None) -> AdminClient:
    """`url`: of another cluster's API; None: the one of this SHOAL_HOME.

    Raises:
        ConfigError: the configuration cannot be read.
    """
    address = (url or api_url(deployed_or_found_config())).rstrip("/")
    return AdminClient(address, api_key=read_api_key())


def _tenant_path(name: str) -> str:
    return f"{TENANTS_PATH}/{quote(name, safe='')}"


def _key_path(tenant: str, key_id: str) -> str:
    return f"{_tenant_path(tenant)}/keys/{quote(key_id, safe='')}"
