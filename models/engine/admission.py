"""How many requests and prompt tokens may wait for an engine, and when a refused one should return.

Online and batch requests are counted apart: a full batch queue refuses nobody else. The time named
to a refused request follows from how fast the queue has drained lately.
"""

import time
from collections import deque
from collections.abc import Callable

from cluster.errors import ServiceUnavailableError
from cluster.types import Request

_REMEMBERED_STARTS = 256
_MIN_RETRY_S = 1.0
_MAX_RETRY_S = 60.0
_FREED_SHARE = 0.25  # a refused request returns when so much of the queue will have drained


class Admission:
    """The queue of one priority. Belongs to one thread."""

    def __init__(
        self, *, max_requests: int, max_tokens: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`max_tokens` of prompts; a request that waits alone may have more."""
        self._max_requests = max_requests
        self._max_tokens = max_tokens
        self._clock = clock
        self._queued: dict[str, int] = {}  # request id -> prompt tokens
        self._num_tokens = 0
        self._starts: deque[float] = deque(maxlen=_REMEMBERED_STARTS)

    @property
    def num_requests(self) -> int:
        """Admitted and not started."""
        return len(self._queued)

    def admit(self, request: Request) -> None:
        """A resumed request always waits: somebody is reading it already, and is not told to come
        back later.

        Raises:
            ServiceUnavailableError: too much is waiting; names the limit and when to come back.
        """
        num_tokens = len(request.prompt_token_ids)
        if request.resumed is None:
            self._refuse_if_full(num_tokens)
        self._queued[request.request_id] = num_tokens
        self._num_tokens += num_tokens

    def _refuse_if_full(self, num_tokens: int) -> None:
        if len(self._queued) >= self._max_requests:
            raise self._refusal(f"{len(self._queued)} requests are waiting")
        if self._queued and self._num_tokens + num_tokens > self._max_tokens:
            raise self._refusal(
                f"{self._num_tokens} prompt tokens are waiting, and with this request's "
                f"{num_tokens} they would be more than {self._max_tokens}"
            )

    def start(self, request_id: str) -> None:
        """Its first token is there."""
        if self.leave(request_id):
            self._starts.append(self._clock())

    def leave(self, request_id: str) -> bool:
        """It waits no longer. Whether it did."""
        num_tokens = self._queued.pop(request_id, None)
        if num_tokens is None:
            return False
        self._num_tokens -= num_tokens
        return True

    def _refusal(self, reason: str) -> ServiceUnavailableError:
        return ServiceUnavailableError(
            f"{reason}, the most that this replica queues.", retry_after_s=self._retry_after_s()
        )

    def _retry_after_s(self) -> float:
        if len(self._starts) < 2:
            return _MIN_RETRY_S
        elapsed_s = max(self._clock() - self._starts[0], 1e-3)
        freed_s = _FREED_SHARE * len(self._queued) * elapsed_s / len(self._starts)
        return min(max(freed_s, _MIN_RETRY_S), _MAX_RETRY_S)
