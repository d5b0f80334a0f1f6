"""A call of a replica through its Serve handle: a deadline, and the errors that the replica raised.

Serve logs each exception that leaves a replica as an error with its traceback, and hands it on
inside a `RayTaskError`. So what a replica refuses it returns (`returns_refusals`), and it is raised
again here. A replica that died or never came shows as errors of Ray's own or as silence. Callers
see `ServingError`s only; anything else is a defect. The id of the request, or task, goes along.
"""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentResponse

from cluster.errors import ServiceUnavailableError, ServingError
from cluster.log_context import log_tags, tagged
from deployments.serve_private import pass_on_request_id, passed_on_request_id

RETRY_AFTER_S = 1.0  # Serve replaces a dead replica about as fast
_LOST_REPLICA_PAUSE_S = 0.1  # before another is asked: Serve needs a moment to notice a death

Arguments = ParamSpec("Arguments")
Reply = TypeVar("Reply")


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """The reply to a call that is refused: a client's mistake, or a service that is away."""

    error: ServingError


def returns_refusals(
    method: Callable[Arguments, Awaitable[Reply]],
) -> Callable[Arguments, Coroutine[Any, Any, Reply | Refusal]]:
    """For a replica's method that is called with `call_replica`: a `ServingError` is no failure of
    the replica, and is returned. Whatever else it raises is one, and Serve logs it.
    """

    @functools.wraps(method)
    async def reply_or_refuse(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Reply | Refusal:
        try:
            with tagged(request_id=passed_on_request_id()):
                return await method(*args, **kwargs)
        except ServingError as error:
            return Refusal(error=error)

    return reply_or_refuse


async def call_replica(
    call: Callable[[], "DeploymentResponse[Reply | Refusal]"], *, service: str, timeout_s: float
) -> Reply:
    """The reply of any replica; a call whose replica is lost is made again.

    `call` makes the remote call, as `lambda: handle.search.remote(…)`. It must be harmless to make
    twice. `service` begins a sentence: "Retrieval", "The embedding model x".

    Raises:
        ServingError: what the replica refused with, as the class it was.
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


async def _reply_of(call: Callable[[], "DeploymentResponse[Reply | Refusal]"]) -> Reply:
    if request_id := log_tags().get("request_id") or log_tags().get("task_id"):
        pass_on_request_id(request_id)
    response = call()
    try:
        reply: Reply | Refusal = await response
    except asyncio.CancelledError:
        response.cancel()  # nobody waits for it any more: the replica may stop too
        raise
    if isinstance(reply, Refusal):
        raise reply.error
    return reply


def _raise_if_final(error: RayError | RayServeException, service: str) -> None:
    """Return only if another replica may do better.

    Raises:
        ServingError: of a method without `returns_refusals`, or that Serve has given up starting
            replicas.
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
