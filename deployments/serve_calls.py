"""A call of a replica through its Serve handle: a deadline, and the errors that the replica raised.

Serve hands a replica's exception on inside a `RayTaskError`, and a replica that died or never came
as errors of Ray's own or as silence. Callers see `ServingError`s only; anything else is a defect.
"""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentResponse

from cluster.errors import ServiceUnavailableError, ServingError

RETRY_AFTER_S = 1.0  # Serve replaces a dead replica about as fast
_LOST_REPLICA_PAUSE_S = 0.1  # before another is asked: Serve needs a moment to notice a death

Reply = TypeVar("Reply")


async def call_replica(
    call: Callable[[], "DeploymentResponse[Reply]"], *, service: str, timeout_s: float
) -> Reply:
    """The reply of any replica; a call whose replica is lost is made again.

    `call` makes the remote call, as `lambda: handle.search.remote(…)`. It must be harmless to make
    twice. `service` begins a sentence: "Retrieval", "The embedding model x".

    Raises:
        ServingError: what the replica raised, as the class it was.
        ServiceUnavailableError: no replica replied in time; has `retry_after_s`.
    """
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            while True:
                try:
                    return await _reply_of(call)
                except (RayError, RayServeException) as error:
                    _raise_if_final(error, service)
                    await asyncio.sleep(_LOST_REPLICA_PAUSE_S)
    except TimeoutError as error:
        if not deadline.expired():
            raise  # the replica's own: a defect
        raise ServiceUnavailableError(
            f"{service} does not answer: no replica replied within {timeout_s:g} s.",
            retry_after_s=RETRY_AFTER_S,
        ) from error


async def _reply_of(call: Callable[[], "DeploymentResponse[Reply]"]) -> Reply:
    response = call()
    try:
        reply: Reply = await response
        return reply
    except asyncio.CancelledError:
        response.cancel()  # nobody waits for it any more: the replica may stop too
        raise


def _raise_if_final(error: RayError | RayServeException, service: str) -> None:
    """Return only if another replica may do better.

    Raises:
        ServingError: the replica's own, or that Serve has given up starting replicas.
        RayTaskError: a defect of the replica's code.
    """
    if isinstance(error, DeploymentUnavailableError):
        raise ServiceUnavailableError(
            f"{service} does not answer: its replicas cannot be started.",
            retry_after_s=RETRY_AFTER_S,
        ) from error
    if isinstance(error, RayTaskError):
        if isinstance(error.cause, ServingError):
            raise error.cause from None
        raise error
