"""An embedder behind a Serve handle: what is asked, how often, and how long it may take."""

import asyncio
from collections.abc import Awaitable, Callable, Generator
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest
from ray.exceptions import ActorDiedError, RayTaskError

from cluster.errors import FieldProblem, ServiceUnavailableError, ValidationError
from cluster.retrieval import Embedder, EmbedderFacts, Embeddings, InputKind
from deployments.embedder_handle import PassageLimits, ServeEmbedder
from tests.models.embedding.checkpoints import tokenizer

FACTS = EmbedderFacts(model_name="m", revision="r", width=2, max_input_tokens=8)


class Response:
    """As a handle's response: awaited once, cancelled at most once."""

    def __init__(self, reply: Callable[[], Awaitable[Any]]) -> None:
        self._reply = reply
        self.is_cancelled = False

    def __await__(self) -> Generator[Any, None, Any]:
        return self._reply().__await__()

    def cancel(self) -> None:
        self.is_cancelled = True


class Handle:
    """A replica whose methods are coroutine functions; remembers the calls."""

    def __init__(self, **methods: Callable[..., Awaitable[Any]]) -> None:
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.responses: list[Response] = []
        for name, method in methods.items():
            setattr(self, name, SimpleNamespace(remote=self._remote(name, method)))

    def _remote(self, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Response]:
        def remote(*arguments: Any) -> Response:
            self.calls.append((name, arguments))
            self.responses.append(Response(lambda: method(*arguments)))
            return self.responses[-1]

        return remote


def serve_embedder(handle: Any, *, timeout_s: float = 5.0) -> ServeEmbedder:
    return ServeEmbedder(handle, model_name="m", timeout_s=timeout_s)


async def give_facts() -> EmbedderFacts:
    return FACTS


async def test_facts_are_asked_for_once() -> None:
    handle = Handle(facts=give_facts)
    embedder: Embedder = serve_embedder(handle)
    assert await embedder.facts() == FACTS
    assert await embedder.facts() == FACTS
    assert handle.calls == [("facts", ())]


async def test_facts_are_asked_for_again_when_another_revision_has_answered() -> None:
    facts = [FACTS, msgspec.structs.replace(FACTS, revision="new")]

    async def next_facts() -> EmbedderFacts:
        return facts.pop(0)

    async def embed(*_: Any) -> Embeddings:
        return Embeddings(vectors_ND=np.eye(2, dtype=np.float32), num_tokens=1, revision="new")

    embedder = serve_embedder(Handle(facts=next_facts, embed=embed))
    assert (await embedder.facts()).revision == "r"
    for _ in range(2):
        await embedder.embed(["x"], kind=InputKind.QUERY)
        assert (await embedder.facts()).revision == "new"


async def test_inputs_and_kind_go_to_a_replica_and_vectors_come_back() -> None:
    vectors = np.eye(2, dtype=np.float32)

    async def embed(inputs: Any, kind: Any) -> Embeddings:
        return Embeddings(vectors_ND=vectors, num_tokens=len(inputs))

    handle = Handle(embed=embed)
    found = await serve_embedder(handle).embed(["a", "b"], kind=InputKind.PASSAGE)
    assert found.vectors_ND is vectors
    assert handle.calls == [("embed", (["a", "b"], InputKind.PASSAGE))]


async def test_a_refusal_arrives_as_it_was() -> None:
    error = ValidationError([FieldProblem(loc=("input", 3), message="must not be empty")])

    async def embed(inputs: Any, kind: Any) -> Embeddings:
        wrapped = RayTaskError("embed", "Traceback …", error, proctitle="x", pid=1, ip="127.0.0.1")
        raise wrapped.as_instanceof_cause()

    with pytest.raises(ValidationError) as caught:
        await serve_embedder(Handle(embed=embed)).embed(["a"], kind=InputKind.PLAIN)
    assert caught.value.param == "input.3"


async def test_a_query_is_asked_again_when_its_replica_is_lost() -> None:
    outcomes: list[Any] = [ActorDiedError(), Embeddings(vectors_ND=np.eye(2), num_tokens=1)]

    async def embed(inputs: Any, kind: Any) -> Embeddings:
        outcome: Any = outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        result: Embeddings = outcome
        return result

    found = await serve_embedder(Handle(embed=embed)).embed(["a"], kind=InputKind.QUERY)
    assert found.num_tokens == 1


async def test_a_query_has_a_deadline() -> None:
    async def embed(inputs: Any, kind: Any) -> Embeddings:
        await asyncio.Event().wait()
        raise AssertionError

    handle = Handle(embed=embed)
    with pytest.raises(
        ServiceUnavailableError, match=r"The embedding model m .* 0\.05 s"
    ) as caught:
        await serve_embedder(handle, timeout_s=0.05).embed(["a"], kind=InputKind.QUERY)
    assert caught.value.retry_after_s
    assert handle.responses[0].is_cancelled


async def test_a_cancelled_bulk_is_cancelled_in_the_replica() -> None:
    has_begun = asyncio.Event()

    async def embed(inputs: Any, kind: Any) -> Embeddings:
        has_begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    handle = Handle(embed=embed)
    embedder = serve_embedder(handle, timeout_s=0.01)  # which is not a bulk's
    bulk = asyncio.create_task(embedder.embed(["a"], kind=InputKind.PASSAGE))
    await has_begun.wait()
    bulk.cancel()
    with pytest.raises(asyncio.CancelledError):
        await bulk
    assert handle.responses[0].is_cancelled


async def test_a_chunker_gets_the_models_own_tokenizer_and_limit() -> None:
    original = tokenizer("bert")

    async def passage_limits() -> PassageLimits:
        return PassageLimits(tokenizer_json=original.to_str(), max_tokens=250)

    handle = Handle(passage_limits=passage_limits)
    embedder = serve_embedder(handle)
    found = await embedder.tokenizer()
    assert found.encode("The warranty").ids == original.encode("The warranty").ids
    assert await embedder.max_passage_tokens() == 250
    assert len(handle.calls) == 1
