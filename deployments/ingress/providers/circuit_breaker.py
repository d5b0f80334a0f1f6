"""Leaves a provider in peace that fails: refuses at once for a while, then tries with one request.

Faults in a row open the circuit. While it is open nothing is sent. After a pause, longer from time
to time, one request goes through as a probe: its success closes the circuit, its fault opens it
again. One process has its own view of each provider.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cluster.errors import ServiceUnavailableError, ServingError
from deployments.ingress.providers.provider_errors import FAULTS

FAULTS_TO_OPEN = 5  # in a row
FIRST_PAUSE_S = 5.0
MAX_PAUSE_S = 60.0
PROBE_RETRY_AFTER_S = 1.0


class CircuitBreaker:
    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._num_faults = 0
        self._pause_s = FIRST_PAUSE_S
        self._opens_until_s: float | None = None  # None: closed
        self._is_probing = False

    @contextmanager
    def attempt(self) -> Iterator[Callable[[], None]]:
        """Around one request; what it gives is called when an answer has begun well.

        Raises:
            ServiceUnavailableError: the circuit is open.
        """
        is_probe = self._admit()
        try:
            yield self._note_success
        except FAULTS:
            self._note_fault(is_probe=is_probe)
            raise
        except ServingError:
            self._note_success()  # a refusal is an answer
            raise
        else:
            self._note_success()
        finally:
            if is_probe:
                self._is_probing = False

    def _admit(self) -> bool:
        """Whether it is a probe."""
        if self._opens_until_s is None:
            return False
        left_s = self._opens_until_s - self._clock()
        if left_s > 0 or self._is_probing:
            raise ServiceUnavailableError(
                f"{self._name} has failed repeatedly; nothing is sent there for a moment.",
                retry_after_s=max(left_s, PROBE_RETRY_AFTER_S),
            )
        self._is_probing = True
        return True

    def _note_success(self) -> None:
        self._num_faults = 0
        self._pause_s = FIRST_PAUSE_S
        self._opens_until_s = None

    def _note_fault(self, *, is_probe: bool) -> None:
        self._num_faults += 1
        if is_probe:
            self._pause_s = min(2 * self._pause_s, MAX_PAUSE_S)
        if is_probe or (self._num_faults >= FAULTS_TO_OPEN and self._opens_until_s is None):
            self._opens_until_s = self._clock() + self._pause_s
