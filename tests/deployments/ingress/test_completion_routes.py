"""Plain completions: every form of prompt, echo, logprobs."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.errors import ServiceUnavailableError
from cluster.types import FinishReason, Request
from tests.deployments.ingress.scripted_server import Server, deltas, stream

CHAT_PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]
MODEL = "shoal/scripted"
USER: list[Any] = [{"role": "user", "content": "hi"}]


async def test_plain_completions_take_texts_and_tokens(server: Server) -> None:
    server.says(" world")
    client = server.openai()
    ids = server.encode("hello")
    for prompt, num_prompts in (("hello", 1), (["hello", "there"], 2), (ids, 1), ([ids, ids], 2)):
        server.pool.requests.clear()
        answer: Any = await client.completions.create(model=MODEL, prompt=prompt, n=2)
        assert [choice.index for choice in answer.choices] == list(range(2 * num_prompts))
        assert {choice.text for choice in answer.choices} == {" world"}
        assert answer.usage.completion_tokens == 2 * num_prompts * (
            len(server.encode(" world")) + 1
        )
        first = server.pool.requests[0]
        assert first.prompt_token_ids == (ids if isinstance(prompt[0], (int, list)) else [0, *ids])
        assert first.sampling_params.max_tokens == 16


async def test_plain_completions_stream_every_prompt(server: Server) -> None:
    server.says("hello world")
    *chunks, usage, done = await stream(
        server,
        "/v1/completions",
        prompt=["a", "b", "c"],
        echo=True,
        stream_options={"include_usage": True},
    )
    assert done == "[DONE]"
    texts, reasons = ["", "", ""], [None, None, None]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["text"]
        reasons[choice["index"]] = choice["finish_reason"]
    assert texts == ["ahello world", "bhello world", "chello world"]
    assert reasons == ["stop"] * 3
    assert usage["usage"]["prompt_tokens"] == 6


@pytest.mark.parametrize("streamed", [True, False])
async def test_echo_with_logprobs_scores_the_prompt(server: Server, streamed: bool) -> None:
    server.says("world")
    body = {"prompt": "hello", "echo": True, "logprobs": 2}
    if streamed:
        events = await stream(server, "/v1/completions", **body)
        parts = [event["choices"][0]["logprobs"] for event in events[:-1]]
        keys = parts[0].keys()
        logprobs = {key: [x for part in parts if part for x in part[key]] for key in keys}
    else:
        async with server.http() as client:
            answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["choices"][0]["text"] == "helloworld"
        logprobs = answer["choices"][0]["logprobs"]
    prompt_ids, ids = [0, *server.encode("hello")], server.encode("world")
    assert logprobs["token_logprobs"] == [None, *(-i / 1000 for i in (prompt_ids[1:] + ids))]
    assert "".join(logprobs["tokens"]) == "<|bos|>helloworld"
    assert logprobs["text_offset"][1] == 0
    assert logprobs["text_offset"][len(prompt_ids)] == len("hello")
    assert logprobs["top_logprobs"][0] is None
    assert len(logprobs["top_logprobs"][1]) == 3  # the two most likely and the chosen one
    assert server.pool.requests[0].sampling_params.prompt_logprobs == 2


async def test_max_tokens_zero_with_echo_only_scores(server: Server) -> None:
    server.says("x", finish=FinishReason.LENGTH)
    async with server.http() as client:
        body = {"prompt": "hello", "echo": True, "logprobs": 0, "max_tokens": 0}
        answer = (await client.post("/v1/completions", json=body)).json()
    assert answer["choices"][0]["text"] == "hello"
    assert answer["usage"]["completion_tokens"] == 0
    assert len(answer["choices"][0]["logprobs"]["tokens"]) == 1 + len(server.encode("hello"))


async def test_one_failing_prompt_fails_the_call_and_frees_the_others(server: Server) -> None:
    def script(request: Request) -> Iterator[Any]:
        if request.request_id.endswith("-1"):
            yield ServiceUnavailableError("no replica")
        yield asyncio.Event()

    server.pool.script = script
    async with server.http() as client:
        answer = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"]})
    assert answer.status_code == 503
    assert server.pool.num_open == 0


async def test_the_best_samples_of_every_prompt_are_returned_by_rank(server: Server) -> None:
    # A sample's logprob is the sum of its tokens' negative ids.
    texts = ["aaa", "b", "cccc", "dd"]

    def script(request: Request) -> Iterator[Any]:
        for index, text in enumerate(texts):
            yield from deltas(request, server.encode(text), index=index)

    server.pool.script = script
    answer: Any = await server.openai().completions.create(
        model=MODEL, prompt=["x", "y"], n=2, best_of=4, logprobs=1
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [choice.text for choice in answer.choices] == ["b", "dd"] * 2
    assert ["".join(choice.logprobs.tokens) for choice in answer.choices] == ["b", "dd"] * 2
    num_tokens = sum(len(server.encode(text)) + 1 for text in texts)
    assert answer.usage.completion_tokens == 2 * num_tokens
    assert answer.usage.prompt_tokens == 2 * 2


async def test_tokens_after_a_stop_string_do_not_lower_a_samples_rank(server: Server) -> None:
    texts = ["a!zzzzzzzz", "bbbb"]

    def script(request: Request) -> Iterator[Any]:
        for index, text in enumerate(texts):
            ids = server.encode(text)
            yield from deltas(request, ids, index=index, group=50, finish=FinishReason.LENGTH)

    server.pool.script = script
    answer: Any = await server.openai().completions.create(
        model=MODEL, prompt="x", best_of=2, stop="!"
    )
    counted, other, whole = (sum(server.encode(text)) for text in ("a!", "bbbb", texts[0]))
    assert counted < other < whole
    assert [choice.text for choice in answer.choices] == ["a"]


async def test_best_of_equal_to_n_changes_nothing_and_streams(server: Server) -> None:
    server.says("hello")
    events = await stream(server, "/v1/completions", prompt="x", n=2, best_of=2)
    texts = ["", ""]
    for event in events[:-1]:
        texts[event["choices"][0]["index"]] += event["choices"][0]["text"]
    assert texts == ["hello", "hello"]
    assert server.pool.requests[0].sampling_params.logprobs is None
