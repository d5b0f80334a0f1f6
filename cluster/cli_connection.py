"""A connection of a command to a cluster's API, with its key."""

from types import TracebackType
from typing import Self

import httpx


class APIConnection:
    """Base of the commands' clients; a context manager."""

    def __init__(self, base_url: str, *, api_key: str | None, timeout: httpx.Timeout) -> None:
        self._base_url = base_url
        headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        # trust_env: a proxy set for the web must not receive what is meant for this machine.
        self._http = httpx.Client(
            base_url=base_url, headers=headers, timeout=timeout, trust_env=False
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
