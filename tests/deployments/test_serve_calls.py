"""Calls of replicas: their errors arrive as what they are, and none waits for ever."""

import asyncio
import pickle
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from cluster.errors import (
    FieldProblem,
    NotFoundError,
    ServiceUnavailableError,
    ServingError,
    ValidationError,
)
from deployments.serve_calls import Refusal, call_replica, returns_refusals


class FakeResponse:
    """As a handle's response: awaited once, cancelled at most once."""

    def __init__(self, reply: Callable[[], Awaitable[str]]) -> None:
        self._reply = reply
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, str]:
        return self._reply().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


def as_serve_hands_it_on(error: Exception) -> Exception:
    wrapped = RayTaskError(
        "search", "Traceback …", error, proctitle="replica", pid=1, ip="127.0.0.1"
    )
    arrived = pickle.loads(pickle.dumps(wrapped))  # noqa: S301  # our own bytes
    dual: Exception = arrived.as_instanceof_cause()
    return dual


class Replies:
    """Plays a list of outcomes, one per call: an exception is raised, anything else returned."""

    def __init__(self, *outcomes: Exception | Refusal | str) -> None:
        self._outcomes = list(outcomes)
        self.num_calls = 0

    def __call__(self) -> FakeResponse:
        self.num_calls += 1
        return FakeResponse(self._next)

    async def _next(self) -> Any:
        outcome = self._outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return pickle.loads(pickle.dumps(outcome))  # noqa: S301  # our own bytes


async def call(replies: Any, *, timeout_s: float = 5.0) -> str:
    reply: str = await call_replica(replies, service="Retrieval", timeout_s=timeout_s)
    return reply


class Replica:
    """As a deployment's class."""

    @returns_refusals
    async def search(self, outcome: Exception | str, *, prefix: str = "") -> str:
        """Plays an outcome."""
        if isinstance(outcome, Exception):
            raise outcome
        return prefix + outcome


REFUSALS = [
    NotFoundError("no bucket handbook", param="bucket_name"),
    ServiceUnavailableError("Redis does not answer", retry_after_s=2.0),
    ValidationError([FieldProblem(loc=("input", 3), message="is empty")]),
]


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_serving_error_leaves_the_replica_as_a_reply_and_is_raised_at_the_caller(
    error: ServingError,
) -> None:
    reply = await Replica().search(error)
    assert isinstance(reply, Refusal)
    with pytest.raises(ServingError) as caught:
        await call(Replies(reply))
    assert type(caught.value) is type(error)
    assert caught.value.body() == error.body()
    assert caught.value.retry_after_s == error.retry_after_s


async def test_a_method_that_refuses_nothing_replies_as_ever() -> None:
    assert await Replica().search("found", prefix="it is ") == "it is found"
    assert Replica.search.__name__ == "search"


async def test_a_defect_leaves_the_replica_as_itself() -> None:
    with pytest.raises(KeyError):
        await Replica().search(KeyError("x"))


@pytest.mark.parametrize("error", REFUSALS)
async def test_a_serving_error_that_was_raised_arrives_as_the_class_it_was(
    error: ServingError,
) -> None:
    with pytest.raises(ServingError) as caught:
        await call(Replies(as_serve_hands_it_on(error)))
    assert type(caught.value) is type(error)
    assert caught.value.body() == error.body()
    assert caught.value.retry_after_s == error.retry_after_s


@pytest.mark.parametrize("defect", [KeyError("x"), TimeoutError("inside")])
async def test_a_defect_of_the_replica_is_not_called_anything_else(defect: Exception) -> None:
    with pytest.raises(RayTaskError) as caught:
        await call(Replies(as_serve_hands_it_on(defect)))
    assert isinstance(caught.value.cause, type(defect))


async def test_a_call_whose_replica_is_lost_is_made_again() -> None:
    replies = Replies(ActorDiedError(), ActorUnavailableError("busy dying", None), "found")
    assert await call(replies) == "found"
    assert replies.num_calls == 3


async def test_no_reply_in_time_is_unavailable_and_the_call_is_cancelled() -> None:
    responses: list[FakeResponse] = []

    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    def remote() -> FakeResponse:
        responses.append(FakeResponse(never))
        return responses[-1]

    with pytest.raises(ServiceUnavailableError, match=r"Retrieval .* within 0.05 s") as caught:
        await call(remote, timeout_s=0.05)
    assert caught.value.retry_after_s is not None
    assert [response.is_cancelled for response in responses] == [True]


async def test_replicas_that_keep_dying_are_unavailable_at_the_deadline() -> None:
    with pytest.raises(ServiceUnavailableError):
        await call(Replies(*[ActorDiedError() for _ in range(1000)]), timeout_s=0.3)


async def test_a_deployment_that_cannot_start_is_said_at_once() -> None:
    error = DeploymentUnavailableError(DeploymentID(name="RetrievalReplica", app_name="shoal"))
    with pytest.raises(ServiceUnavailableError, match="cannot be started"):
        await call(Replies(error))
