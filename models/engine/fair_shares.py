"""Who is served next among tenants: the one that was served least (virtual token counters).

A tenant's counter grows with the tokens computed for it. One that comes back after a pause starts
no lower than those who are there: a pause saves nothing up. (Sheng et al., 2024.)
"""

from collections import Counter
from collections.abc import Iterable

_OUTPUT_WEIGHT = 2  # a generated token takes a step of its own; a prompt's share one
_MAX_REMEMBERED = 4096  # tenants without work whose counters are kept


class FairShares:
    """Counters of one engine's tenants. Costs nothing while there is one."""

    def __init__(self) -> None:
        self._num_requests: Counter[str] = Counter()  # unfinished, by tenant
        self._served: dict[str, int] = {}

    @property
    def is_contended(self) -> bool:
        """Whether several tenants have requests here."""
        return len(self._num_requests) > 1

    def begin(self, tenant: str) -> None:
        """One more request of a tenant."""
        if tenant not in self._num_requests:
            least = min((self._served[one] for one in self._num_requests), default=0)
            self._served[tenant] = max(self._served.get(tenant, 0), least)
        self._num_requests[tenant] += 1

    def end(self, tenant: str) -> None:
        """A request of a tenant has ended, in whatever way."""
        self._num_requests[tenant] -= 1
        if self._num_requests[tenant] == 0:
            del self._num_requests[tenant]
            if len(self._served) > _MAX_REMEMBERED:
                self._served = {one: self._served[one] for one in self._num_requests}

    def charge(
        self, tenant: str, *, num_prompt_tokens: int = 0, num_output_tokens: int = 0
    ) -> None:
        """Count what a step computes for a tenant."""
        self._served[tenant] += num_prompt_tokens + _OUTPUT_WEIGHT * num_output_tokens

    def in_order(self, tenants: Iterable[str]) -> list[str]:
        """Each tenant once, the least served first; among equals, the one with fewer requests."""
        found = set(tenants)
        return list(found) if len(found) < 2 else sorted(found, key=self._rank)

    def _rank(self, tenant: str) -> tuple[int, int, str]:
        return self._served[tenant], self._num_requests[tenant], tenant

    def check(self, tenants: Iterable[str]) -> None:
        """Assert that these, one of each unfinished request, are the ones that are counted."""
        assert Counter(tenants) == self._num_requests
