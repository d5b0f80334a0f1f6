"""Retrieval for models of providers: found, fitted by characters, sent as text, and told."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cluster.config import RedisConfig
from cluster.errors import NotFoundError
from cluster.integration_secrets import BearerValue
from cluster.redis_client import connect
from cluster.retrieval import SearchMode
from cluster.types import BucketRef, Chunk, FoundChunk
from deployments.ingress.providers.external_grounding import CHUNK_OVERHEAD_CHARS
from tests.deployments.ingress.door_server import DoorServer, serving_doors
from tests.deployments.ingress.providers.conftest import REF, TOKEN, far
from tests.deployments.ingress.providers.fake_provider import FakeProvider, says
from tests.deployments.ingress.scripted_server import events_of

TOOLS = [{"type": "retrieval", "retrieval": {"bucket_ids": ["handbook"]}}]


@dataclass
class WrittenRetriever:
    """Implements `Retriever`: finds what a test has written down."""

    texts: list[str]
    queries: list[Sequence[str]] = field(default_factory=list)

    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        *,
        max_results: int,
        mode: SearchMode = SearchMode.FUSED,
    ) -> list[FoundChunk]:
        (bucket,) = buckets
        if bucket != BucketRef("default", "handbook"):
            raise NotFoundError("There is no such bucket.")
        self.queries.append(queries)
        return [
            FoundChunk(
                bucket=bucket.name,
                filename="a.md",
                etag="e",
                embedding_model="m",
                chunk=Chunk(text=text, start=0, end=len(text)),
                position=10 - rank,  # the best one stands last in its file
                distance=0.1 * rank,
                score=1.0 - 0.1 * rank,
            )
            for rank, text in enumerate(self.texts)
        ]


@pytest.fixture
def retriever() -> WrittenRetriever:
    return WrittenRetriever(["The pass opens at 7.", "The door is red."])


@pytest.fixture
async def doors(
    checkpoint: Path,
    tmp_path: Path,
    redis_config: RedisConfig,
    provider: FakeProvider,
    retriever: WrittenRetriever,
) -> AsyncIterator[DoorServer]:
    configs = [far(provider, retrieval_chars=300)]
    async with (
        connect(redis_config) as redis,
        serving_doors(checkpoint, tmp_path, redis, configs, retriever=retriever) as running,
    ):
        await running.secrets.create("default", REF, BearerValue(TOKEN))
        yield running


async def ask(doors: DoorServer, **more: Any) -> Any:
    return await doors.chat(model="far/big", api_key_ref=REF, **{"tools": TOOLS, **more})


async def test_found_passages_go_into_the_system_message_and_into_the_answer(
    doors: DoorServer, provider: FakeProvider, retriever: WrittenRetriever
) -> None:
    provider.script = says("At 7.")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}]
    answer = (await ask(doors, messages=messages)).json()
    system, user = provider.requests[0].body["messages"]
    assert system["content"].startswith("Be brief.\n\n")
    assert system["content"].index("red") < system["content"].index("opens"), "by place in the file"
    assert user == messages[1]
    assert "tools" not in provider.requests[0].body
    assert retriever.queries == [["When?"]]
    chunks = answer["choices"][0]["message"]["retrieval"]["chunks"]
    assert [chunk["text"] for chunk in chunks] == ["The door is red.", "The pass opens at 7."]


async def test_a_stream_tells_what_was_found_with_its_last_delta(
    doors: DoorServer, provider: FakeProvider
) -> None:
    provider.script = says("At", " 7.")
    body = {"model": "far/big", "api_key_ref": REF, "tools": TOOLS, "stream": True}
    messages = [{"role": "user", "content": "When?"}]
    async with (
        doors.http() as client,
        client.stream(
            "POST", "/v1/chat/completions", json={**body, "messages": messages}
        ) as response,
    ):
        *_, last, end = await events_of(response)
    assert end == "[DONE]"
    assert len(last["choices"][0]["delta"]["retrieval"]["chunks"]) == 2


async def test_who_does_not_want_to_know_is_not_told(doors: DoorServer) -> None:
    options = {"bucket_ids": ["handbook"], "return_chunks": False}
    answer = await ask(doors, tools=[{"type": "retrieval", "retrieval": options}])
    assert "retrieval" not in answer.text


async def test_the_worst_passages_give_way_where_there_is_no_room(
    doors: DoorServer, provider: FakeProvider, retriever: WrittenRetriever
) -> None:
    size = 300 - CHUNK_OVERHEAD_CHARS - len("a.md")
    retriever.texts = ["b" * size, "c"]
    assert (await ask(doors)).status_code == 200
    text = provider.requests[0].body["messages"][0]["content"]
    assert text.endswith("b" * size)
    retriever.texts = ["b" * (size + 1)]
    refused = await ask(doors)
    assert refused.status_code == 400
    assert "300 characters" in refused.json()["errors"][0]["detail"]


async def test_pictures_are_sent_and_not_searched_for(
    doors: DoorServer, provider: FakeProvider, retriever: WrittenRetriever
) -> None:
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What is this?"}, image]
    assert (await ask(doors, messages=[{"role": "user", "content": content}])).status_code == 200
    assert retriever.queries == [["What is this?"]]
    assert provider.requests[0].body["messages"][1]["content"][1] == image


async def test_a_bucket_that_does_not_exist_is_named_before_anything_is_sent(
    doors: DoorServer, provider: FakeProvider
) -> None:
    tools = [{"type": "retrieval", "retrieval": {"bucket_ids": ["nowhere"]}}]
    answer = await ask(doors, tools=tools)
    assert answer.status_code == 404
    pointer = answer.json()["errors"][0]["source"]["pointer"]
    assert pointer == "/tools/0/retrieval/bucket_ids"
    assert provider.requests == []
