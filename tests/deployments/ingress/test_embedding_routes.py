"""`POST …/embeddings` over a real socket, with the openai SDK and without it."""

import asyncio
import base64
import gc
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from cluster.errors import ServiceUnavailableError, TooManyRequestsError
from cluster.retrieval import InputKind
from tests.deployments.ingress.embedding_server import (
    CHAT_MODEL,
    MODEL,
    WIDTH,
    EmbeddingServer,
    serving_embeddings,
)
from tests.models.embedding.checkpoints import TEXTS, add_layout, save_checkpoint

PATHS = ("/v1", "/v2/ai/openai", "/v2/ai")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bert")
    return add_layout(save_checkpoint(folder, max_position_embeddings=200), max_seq_length=160)


@pytest.fixture
async def server(folder: Path) -> AsyncIterator[EmbeddingServer]:
    async with serving_embeddings(folder) as running:
        yield running


def expected(server: EmbeddingServer, texts: list[str]) -> np.ndarray[Any, Any]:
    return server.model.embed_tokens(server.model.whole(texts))


# What is answered.


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("encoding", ["float", "base64", None])
async def test_the_sdk_gets_the_vectors_of_the_model(
    server: EmbeddingServer, path: str, encoding: Any
) -> None:
    texts = list(TEXTS)
    options = {} if encoding is None else {"encoding_format": encoding}
    async with server.openai(path) as client:
        answer = await client.embeddings.create(model=MODEL, input=texts, **options)
    assert answer.object == "list"
    assert answer.model == MODEL
    assert [item.index for item in answer.data] == list(range(len(texts)))
    assert {item.object for item in answer.data} == {"embedding"}
    vectors = [item.embedding for item in answer.data]
    if encoding == "base64":  # asked for by name, it is not decoded
        vectors = [np.frombuffer(base64.b64decode(str(vector)), "<f4") for vector in vectors]  # type: ignore[misc]
    np.testing.assert_allclose(np.array(vectors), expected(server, texts), atol=1e-5)
    num_tokens = sum(map(len, server.model.whole(texts)))
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens
    assert server.embedder.calls == [(texts, InputKind.PLAIN)]


async def test_one_text_is_a_list_of_one(server: EmbeddingServer) -> None:
    async with server.openai() as client:
        answer = await client.embeddings.create(model=MODEL, input="Berlin", user="somebody")
    np.testing.assert_allclose(answer.data[0].embedding, expected(server, ["Berlin"])[0], atol=1e-5)
    assert len(answer.data) == 1


async def test_token_ids_are_read_as_they_are(server: EmbeddingServer) -> None:
    rows = server.model.whole(list(TEXTS[:2]))
    async with server.openai() as client:
        many = await client.embeddings.create(model=MODEL, input=rows)
        one = await client.embeddings.create(model=MODEL, input=rows[0])
    vectors = np.array([item.embedding for item in many.data])
    np.testing.assert_allclose(vectors, expected(server, list(TEXTS[:2])), atol=1e-5)
    np.testing.assert_allclose(one.data[0].embedding, vectors[0], atol=1e-5)
    assert many.usage.prompt_tokens == sum(map(len, rows))


@pytest.mark.parametrize("dimensions", [1, 8, WIDTH])
async def test_fewer_dimensions_are_the_first_ones_as_a_unit_vector(
    server: EmbeddingServer, dimensions: int
) -> None:
    async with server.openai() as client:
        answer = await client.embeddings.create(
            model=MODEL, input=list(TEXTS), dimensions=dimensions
        )
    narrow = expected(server, list(TEXTS))[:, :dimensions]
    narrow /= np.linalg.norm(narrow, axis=1, keepdims=True)
    np.testing.assert_allclose([item.embedding for item in answer.data], narrow, atol=1e-5)


async def test_floats_are_written_so_that_they_read_back_as_the_same_float32(
    server: EmbeddingServer,
) -> None:
    async with server.http() as client:
        body = {"model": MODEL, "input": list(TEXTS)}
        floats = (await client.post("/v1/embeddings", json=body)).json()
        body["encoding_format"] = "base64"
        encoded = (await client.post("/v1/embeddings", json=body)).json()
    read = np.array([item["embedding"] for item in floats["data"]], dtype=np.float32)
    exact = [np.frombuffer(base64.b64decode(i["embedding"]), "<f4") for i in encoded["data"]]
    np.testing.assert_array_equal(read, np.array(exact))


async def test_without_a_model_the_first_one_answers(server: EmbeddingServer) -> None:
    async with server.http() as client:
        response = await client.post("/v1/embeddings", json={"input": "x"})
    assert response.json()["model"] == MODEL
    assert response.headers["x-request-id"].startswith("req_")


@pytest.mark.parametrize("path", PATHS[:2])
async def test_the_models_are_listed(server: EmbeddingServer, path: str) -> None:
    async with server.openai(path) as client:
        listed: Any = await client.get("/embeddings/models", cast_to=object)
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert (model["id"], model["object"], model["owned_by"]) == (MODEL, "model", "shoal")
    assert isinstance(model["created"], int)


async def test_tokens_are_counted(server: EmbeddingServer) -> None:
    async with server.openai() as client:
        answer = await client.embeddings.create(model=MODEL, input="Berlin")
    page = server.telemetry.exposition().decode()
    assert f'prompt_tokens_total{{model_name="{MODEL}"}} {answer.usage.prompt_tokens}.0' in page


# What is refused.


async def refusal(server: EmbeddingServer, status: int, **body: Any) -> dict[str, Any]:
    async with server.http() as client:
        response = await client.post("/v1/embeddings", json={"model": MODEL} | body)
    assert response.status_code == status, response.text
    error: dict[str, Any] = response.json()["error"]
    return error


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({}, "input", "is required"),
        ({"input": None}, "input", "must be a string, an array of token ids"),
        ({"input": []}, "input", "must be a string, an array of token ids"),
        ({"input": 5}, "input", "given 5"),
        ({"input": {"text": "x"}}, "input", "must be a string"),
        ({"input": ["a", 5]}, "input", "must be a string"),
        ({"input": ["a", [5]]}, "input", "must be a string"),
        ({"input": [[5], "a"]}, "input", "must be a string"),
        ({"input": [1.5]}, "input", "must be a string"),
        ({"input": [True]}, "input", "must be a string"),
        ({"input": [-1]}, "input", "must be a string"),
        ({"input": [[-1]]}, "input", "must be a string"),
        ({"input": ""}, "input", "must not be empty"),
        ({"input": ["a", ""]}, "input.1", "must not be empty"),
        ({"input": [[5], []]}, "input.1", "must not be empty"),
        ({"input": [""] * 2048}, "input.0", "must not be empty"),
        ({"input": ["a"] * 2049}, "input", "must be at most 2048 inputs; given 2049"),
        ({"input": [[5]] * 2049}, "input", "must be at most 2048 inputs; given 2049"),
        ({"input": [[5] * 128] * 2344}, "input", "must be at most 2048 inputs"),
        ({"input": [[5] * 150] * 2048}, "input", "at most 300000 tokens in all; given 307200"),
        ({"input": "word " * 200}, "input", "the model reads at most 160"),
        ({"input": ["a", "word " * 200]}, "input.1", "the model reads at most 160"),
        ({"input": [5] * 161}, "input", "has 161 tokens; the model reads at most 160"),
        ({"input": [[5], [5] * 161]}, "input.1", "has 161 tokens"),
        ({"input": [400]}, "input", "token ids must be below 400; given 400"),
        ({"input": [[5], [5, 2**62]]}, "input.1", f"given {2**62}"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "encoding_format": 1}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "dimensions": 0}, "dimensions", "must be an integer in [1, "),
        ({"input": "a", "dimensions": -3}, "dimensions", "must be an integer in [1, "),
        ({"input": "a", "dimensions": 1.5}, "dimensions", "must be an integer"),
        ({"input": "a", "dimensions": "8"}, "dimensions", "must be an integer"),
        ({"input": "a", "dimensions": WIDTH + 1}, "dimensions", f"must be at most {WIDTH}, the wi"),
        ({"input": "a", "user": 5}, "user", "must be a string"),
        ({"input": "a", "model": 5}, "model", "must be a string"),
        ({"input": "a", "prompt": "b"}, "prompt", "is not a field that this endpoint knows"),
    ],
)
async def test_a_wrong_field_is_named_with_what_is_allowed(
    server: EmbeddingServer, body: dict[str, Any], param: str, message: str
) -> None:
    error = await refusal(server, 422, **body)
    assert error["param"] == param
    assert message in error["message"]


async def test_several_wrong_fields_are_all_named(server: EmbeddingServer) -> None:
    async with server.http() as client:
        response = await client.post("/v1/embeddings", json={"input": 5, "dimensions": 0})
    places = [item["loc"] for item in response.json()["detail"]]
    assert places == [["body", "input"], ["body", "dimensions"]]


async def test_more_tokens_than_a_request_may_have_are_refused(server: EmbeddingServer) -> None:
    text = "1 " * 75
    assert 147 <= len(server.model.whole([text])[0]) <= 160
    error = await refusal(server, 422, input=[text] * 2048)
    assert error["param"] == "input"
    assert "at most 300000 tokens in all; given" in error["message"]


async def test_an_unknown_model_does_not_exist(server: EmbeddingServer) -> None:
    async with server.openai() as client:
        with pytest.raises(openai.NotFoundError) as caught:
            await client.embeddings.create(model="text-embedding-3-small", input="x")
    assert caught.value.code == "model_not_found"
    assert caught.value.param == "model"
    assert "there is: test/embed" in caught.value.message


async def test_a_chat_model_gives_no_embeddings(server: EmbeddingServer) -> None:
    async with server.openai() as client:
        with pytest.raises(openai.BadRequestError) as caught:
            await client.embeddings.create(model=CHAT_MODEL, input="x")
    assert "'test/chat' answers chats and gives no embeddings" in caught.value.message
    assert caught.value.param == "model"


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"input": NaN}', b'{"input": "\\ud800"}', b""])
async def test_a_body_that_is_no_json_object_is_refused(
    server: EmbeddingServer, body: bytes
) -> None:
    async with server.http() as client:
        response = await client.post(
            "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
    assert response.status_code in (400, 422)
    assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status"), [(TooManyRequestsError, 429), (ServiceUnavailableError, 503)]
)
async def test_what_replicas_refuse_reaches_the_client_with_retry_after(
    server: EmbeddingServer, error: Any, status: int
) -> None:
    server.embedder.error = error("busy", retry_after_s=7.0)
    async with server.http() as client:
        response = await client.post("/v1/embeddings", json={"input": "x"})
    assert response.status_code == status
    assert response.headers["retry-after"] == "7"


async def test_a_body_with_a_bucket_is_not_openais(server: EmbeddingServer) -> None:
    async with server.http() as client:
        for body in ({"bucket_name": "b"}, {"bucket_name": "b", "input": "x"}, {"other": 1}):
            response = await client.post("/v2/ai/embeddings", json=body)
            assert "this would embed a bucket" in response.text
        wrong = await client.post("/v2/ai/embeddings", json={"input": "x", "dimensions": 0})
    assert wrong.json()["error"]["param"] == "dimensions"


# Under load.


async def test_a_client_who_leaves_is_not_computed_for(server: EmbeddingServer) -> None:
    async with server.http() as client:
        request = asyncio.create_task(
            client.post("/v1/embeddings", json={"input": ["one, two, three " * 8] * 2048})
        )
        await server.embedder.is_called.wait()
        assert server.embedder.embedder.queue.num_queued_tokens > 0
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await server.embedder.embedder.queue.drain()
    assert server.embedder.embedder.queue.num_queued_tokens == 0


@pytest.fixture
def _no_garbage_collection() -> Iterator[None]:
    """It takes as long as all tests before have left objects."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("_no_garbage_collection")
async def test_a_large_request_does_not_hold_up_the_event_loop(server: EmbeddingServer) -> None:
    """Its longest step takes a millisecond or two: fifty times as long is not another machine."""
    texts = [f"number {number}" for number in range(2048)]
    longest_s = 0.0

    async def watch() -> None:
        nonlocal longest_s
        while True:
            before_s = time.thread_time()  # of this thread alone: the machine may be busy
            await asyncio.sleep(0)
            longest_s = max(longest_s, time.thread_time() - before_s)

    body = json.dumps({"input": texts}).encode()
    async with server.http() as client:
        watcher = asyncio.create_task(watch())
        response = await client.post(
            "/v1/embeddings", content=body, headers={"content-type": "application/json"}
        )
        watcher.cancel()
    assert len(response.json()["data"]) == 2048
    assert longest_s < 0.1
