"""What is known of one HTTP exchange for the metrics and the log, filled in as it goes along."""

import time
from dataclasses import dataclass, field

from cluster.config import DEFAULT_TENANT
from cluster.errors import PermissionDeniedError, ServingError
from cluster.tenant_config import KeyScope
from cluster.tenants.records import ApiKey
from cluster.types import PRIORITY_BATCH, PRIORITY_ONLINE, FinishReason
from deployments.ingress.deadline import Deadline
from deployments.ingress.metering import Meter

SCOPE_KEY = "shoal.exchange"
REASON_FAILED = "error"


@dataclass(slots=True, kw_only=True)
class Exchange:
    """`model` and `route` stay "" until they are known to be ours, never a client's invention."""

    started_s: float = field(default_factory=time.perf_counter)
    # Whose request it is; without keys there is only one tenant.
    key: ApiKey = field(default_factory=lambda: ApiKey.nobody(DEFAULT_TENANT))
    meter: Meter = field(default_factory=Meter)  # what it may use, and uses
    deadline: Deadline | None = None  # None: the client waits as long as it takes
    priority: int = PRIORITY_ONLINE  # of what it asks of the engines
    model: str = ""
    route: str = ""
    request_id: str = ""  # of the HTTP request: in its logs, and in a header of its answer
    answer_id: str = ""  # of the object that is answered, of its requests to engines
    is_anthropic: bool = False  # whose headers and errors the path speaks
    finish_reason: str = ""  # of the choice that ended last
    failure: ServingError | None = None  # midway, after the status was sent

    @property
    def is_batch(self) -> bool:
        """Whether it is a line of a batch: nobody waits for it."""
        return self.priority == PRIORITY_BATCH

    @property
    def tenant(self) -> str:
        return self.key.tenant

    def require(self, *scopes: KeyScope) -> None:
        """
        Raises:
            PermissionDeniedError: the key has none of the scopes. No scopes: any key will do.
        """
        if scopes and self.key.scopes.isdisjoint(scopes):
            needed = " or ".join(repr(scope.value) for scope in scopes)
            has = ", ".join(sorted(scope.value for scope in self.key.scopes))
            raise PermissionDeniedError(
                f"This needs a key with the scope {needed}; the key has: {has}.",
                openai_code="insufficient_scope",
            )

    @property
    def request_id_header(self) -> tuple[bytes, bytes]:
        name = b"request-id" if self.is_anthropic else b"x-request-id"
        return name, self.request_id.encode()

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Of an answer, beside that of the request's id."""
        return self.meter.headers(is_anthropic=self.is_anthropic)

    def note_finish(self, reason: FinishReason | None) -> None:
        if reason is not None:
            self.finish_reason = reason.value

    def note_failure(self, error: ServingError) -> None:
        self.failure = error
        self.finish_reason = REASON_FAILED
