"""What clients get over HTTP is what transformers computes on the same weights."""

import itertools
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import openai
import pytest
import pytest_asyncio
import torch
from transformers import GenerationConfig

from tests.deployments.ingress.engine_server import (
    EngineServer,
    make_model,
    serving_engine,
)
from tests.deployments.ingress.scripted_server import MODEL

pytestmark = pytest.mark.asyncio(loop_scope="module")

MAX_TOKENS = 12
USER: list[Any] = [{"role": "user", "content": "hello there"}]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[EngineServer]:
    folder = tmp_path_factory.mktemp("model")
    make_model(checkpoint, folder)
    async with serving_engine(folder) as running:
        yield running


# -- beams -----------------------------------------------------------------------------------------


def transformers_beams(
    server: EngineServer, prompt: list[int], *, num_beams: int, n: int, **how: Any
) -> list[list[int]]:
    config = GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        num_beams=num_beams,
        num_return_sequences=n,
        do_sample=False,
        eos_token_id=server.end_tokens,
        pad_token_id=0,
        **how,
    )
    found = []
    input_ids = torch.tensor([prompt])
    # Without a mask it takes tokens that equal the padding token, of which prompts have one, out.
    outputs = server.model.generate(
        input_ids, attention_mask=torch.ones_like(input_ids), generation_config=config
    )
    for output in outputs[:, len(prompt) :].tolist():
        ends = [position + 1 for position, token in enumerate(output) if token in server.end_tokens]
        found.append(output[: ends[0] if ends else len(output)])
    return found


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.8, 2.0, -1.0])
async def test_beams_over_http_equal_transformers(
    server: EngineServer, length_penalty: float, early_stopping: bool
) -> None:
    beams = {"length_penalty": length_penalty, "early_stopping": early_stopping}
    answer = await server.openai().chat.completions.create(
        model=MODEL,
        messages=USER,
        max_tokens=MAX_TOKENS,
        n=3,
        extra_body={"use_beam_search": True, "best_of": 5, **beams},
    )
    prompt, _ = server.chosen(0)
    expected = transformers_beams(server, prompt, num_beams=5, n=3, **beams)
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [c.message.content for c in answer.choices] == [server.text(ids) for ids in expected]
    assert [choice.finish_reason for choice in answer.choices] == [
        "stop" if ids[-1] in server.end_tokens else "length" for ids in expected
    ]
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == len(prompt)
    assert answer.usage.completion_tokens == sum(len(ids) for ids in expected)


async def test_beam_search_by_itself_has_four_beams_and_no_temperature(
    server: EngineServer,
) -> None:
    async with server.http() as client:
        body = {"messages": USER, "use_beam_search": True, "max_tokens": MAX_TOKENS}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
    prompt, _ = server.chosen(0)
    (expected,) = transformers_beams(server, prompt, num_beams=4, n=1)
    assert answer["choices"][0]["message"]["content"] == server.text(expected)


async def test_streamed_beams_come_one_chunk_each_and_are_the_same(server: EngineServer) -> None:
    beams = {"use_beam_search": True, "best_of": 4}
    chunks = await server.openai().chat.completions.create(
        model=MODEL,
        messages=USER,
        max_tokens=MAX_TOKENS,
        n=2,
        logprobs=True,
        stream=True,
        stream_options={"include_usage": True},
        extra_body=beams,
    )
    *events, last = [chunk async for chunk in chunks]
    prompt, _ = server.chosen(0)
    expected = transformers_beams(server, prompt, num_beams=4, n=2)
    shown = [(e.choices[0].index, e.choices[0].delta.content) for e in events]
    contents = [(index, text) for index, text in shown if text]
    assert shown[:2] == [(0, ""), (1, "")]
    assert contents == [(rank, server.text(ids)) for rank, ids in enumerate(expected)]
    assert last.usage is not None
    assert last.usage.completion_tokens == sum(map(len, expected))


async def test_stop_strings_end_beams(server: EngineServer) -> None:
    body: dict[str, Any] = {
        "messages": USER,
        "use_beam_search": True,
        "n": 4,
        "max_tokens": MAX_TOKENS,
        "length_penalty": 0,
        "early_stopping": True,
    }
    async with server.http() as client:
        free = (await client.post("/v1/chat/completions", json=body)).json()
        texts = [choice["message"]["content"] for choice in free["choices"]]
        stop = next(char for char in "".join(texts) if char.isascii())
        body["stop"] = [stop]
        stopped = (await client.post("/v1/chat/completions", json=body)).json()
    assert all(stop not in choice["message"]["content"] for choice in stopped["choices"])
    # What ends a hypothesis also ends the search for its continuations.
    searched = [server.text(server.chosen(rank)[1]) for rank in range(4)]
    ended = [text for text in searched if stop in text]
    assert ended, "no hypothesis ends with the stop string: the test shows nothing"
    for shown, text in zip(stopped["choices"], searched, strict=True):
        assert shown["message"]["content"] == text.split(stop)[0]
        assert text.count(stop) <= 1


async def test_penalties_and_bias_change_beams(server: EngineServer) -> None:
    async def content(**fields: Any) -> str:
        body = {"messages": USER, "use_beam_search": True, "max_tokens": MAX_TOKENS, **fields}
        answer = (await client.post("/v1/chat/completions", json=body)).json()
        text: str = answer["choices"][0]["message"]["content"]
        return text

    async with server.http() as client:
        plain = await content()
        _, ids = server.chosen(0)
        assert await content(logit_bias={str(ids[0]): -100}) != plain
        assert server.chosen(0)[1][0] != ids[0]
        await content(min_tokens=MAX_TOKENS)
        assert len(server.chosen(0)[1]) == MAX_TOKENS
        await content(presence_penalty=2, frequency_penalty=2, repetition_penalty=1.5)
        _, penalized = server.chosen(0)
        assert len(set(penalized)) == len(penalized)


# -- best_of ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_best_of_returns_the_samples_with_the_best_logprobs(
    server: EngineServer, path: str
) -> None:
    body: dict[str, Any] = {"n": 2, "best_of": 6, "seed": 5, "temperature": 1}
    body |= {"prompt": "hello"} if path == "/v1/completions" else {"messages": USER}
    async with server.http() as client:
        answer = (await client.post(path, json={**body, "max_tokens": MAX_TOKENS})).json()
    drawn = [server.chosen(index) for index in range(6)]

    def total(prompt: list[int], output: list[int]) -> float:
        rows = server.logprobs(prompt + output)[len(prompt) - 1 : -1]
        return sum(row[token].item() for row, token in zip(rows, output, strict=True))

    best = sorted(drawn, key=lambda sample: -total(*sample))[:2]
    texts = [c["text"] if "text" in c else c["message"]["content"] for c in answer["choices"]]
    assert texts == [server.text(output) for _, output in best]
    assert len({server.text(output) for _, output in drawn}) == 6
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert all(choice["logprobs"] is None for choice in answer["choices"])
    # Every sample is paid for, returned or not.
    assert answer["usage"]["completion_tokens"] == sum(len(output) for _, output in drawn)


# -- logprobs --------------------------------------------------------------------------------------


def assert_chat_logprobs(
    server: EngineServer, content: list[Any], prompt: list[int], output: list[int], num_top: int
) -> None:
    shown = output[:-1] if output[-1] in server.end_tokens else output
    rows = server.logprobs(prompt + output)[len(prompt) - 1 :]
    assert len(content) == len(shown) > 0
    for entry, token_id, row in zip(content, shown, rows, strict=False):
        assert bytes(entry["bytes"]) == server.tokenizer.token_bytes(token_id)
        assert entry["logprob"] == pytest.approx(row[token_id].item(), abs=1e-4)
        top = row.topk(num_top)
        tops = entry["top_logprobs"]
        assert [t["logprob"] for t in tops] == pytest.approx(top.values.tolist(), abs=1e-4)
        assert [bytes(t["bytes"]) for t in tops] == [
            server.tokenizer.token_bytes(i) for i in top.indices.tolist()
        ]


@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "how",
    [
        {"temperature": 1.5, "top_p": 0.9, "logit_bias": {"70": 5}, "min_tokens": 4},
        {"use_beam_search": True, "best_of": 5},
        {"temperature": 1, "guided_regex": "[a-z ]{5,40}"},
    ],
    ids=["sampled", "beams", "guided"],
)
async def test_chat_logprobs_are_the_raw_distribution(
    server: EngineServer, how: dict[str, Any], streamed: bool
) -> None:
    body = {
        "messages": USER,
        "n": 3,
        "logprobs": True,
        "top_logprobs": 20,
        "max_tokens": MAX_TOKENS,
        **how,
    }
    contents: list[list[Any]] = [[], [], []]
    async with server.http() as client:
        answer = await client.post("/v1/chat/completions", json={**body, "stream": streamed})
    if streamed:
        for line in answer.text.splitlines():
            if line.startswith("data: {"):
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                contents[choice["index"]] += (choice["logprobs"] or {"content": []})["content"]
    else:
        for choice in answer.json()["choices"]:
            contents[choice["index"]] = choice["logprobs"]["content"]
    for index, content in enumerate(contents):
        assert_chat_logprobs(server, content, *server.chosen(index), 20)


def assert_legacy_logprobs(
    server: EngineServer, logprobs: Any, tokens: list[int], rows: torch.Tensor, num_top: int
) -> None:
    """`rows[i]` predicts `tokens[i]`."""
    values = [row[token].item() for row, token in zip(rows, tokens, strict=True)]
    assert logprobs["token_logprobs"] == pytest.approx(values, abs=1e-4)
    for top, row, token_id in zip(logprobs["top_logprobs"], rows, tokens, strict=True):
        expected = row.topk(num_top).values.tolist()
        if token_id not in row.topk(num_top).indices.tolist():
            expected.append(row[token_id].item())
        assert sorted(top.values(), reverse=True) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("num_top", [0, 5])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("how", [{}, {"use_beam_search": True}], ids=["sampled", "beams"])
async def test_completions_logprobs_score_prompt_and_output(
    server: EngineServer, how: dict[str, Any], streamed: bool, num_top: int
) -> None:
    prompt_text = "hello there, world"
    body = {"prompt": prompt_text, "echo": True, "logprobs": num_top, "max_tokens": 8, **how}
    async with server.http() as client:
        answer = await client.post("/v1/completions", json={**body, "stream": streamed})
    parts = (
        [json.loads(line[6:])["choices"][0] for line in answer.text.splitlines() if "{" in line]
        if streamed
        else answer.json()["choices"]
    )
    text = "".join(part["text"] for part in parts)
    logprobs = {
        key: list(itertools.chain(*(p["logprobs"][key] for p in parts if p["logprobs"])))
        for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
    }
    prompt, output = server.chosen(0)
    shown = output[:-1] if output[-1] in server.end_tokens else output
    assert text == prompt_text + server.text(output)
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    rest = {key: values[1:] for key, values in logprobs.items()}
    rows = server.logprobs(prompt + output)[: len(prompt) + len(shown) - 1]
    assert_legacy_logprobs(server, rest, (prompt + shown)[1:], rows, num_top)
    assert logprobs["text_offset"] == sorted(logprobs["text_offset"])
    assert logprobs["text_offset"][len(prompt)] == len(prompt_text)


async def test_max_tokens_zero_scores_several_prompts_of_both_forms(server: EngineServer) -> None:
    client = server.openai()
    ids = server.tokenizer.encode("the weather", add_special_tokens=False)
    for prompt in (["hello", "and there"], [ids, ids[::-1]]):
        answer: Any = await client.completions.create(
            model=MODEL,
            prompt=prompt,  # type: ignore[arg-type]
            echo=True,
            logprobs=1,
            max_tokens=0,
        )
        assert answer.usage.completion_tokens == 0
        requests = server.pool.requests[-2:]
        for choice, request in zip(answer.choices, requests, strict=True):
            rows = server.logprobs(request.prompt_token_ids)[:-1]
            logprobs = {k: v[1:] for k, v in choice.logprobs.model_dump().items()}
            assert_legacy_logprobs(server, logprobs, request.prompt_token_ids[1:], rows, 1)
            assert choice.text == server.tokenizer.decode(
                request.prompt_token_ids, skip_special_tokens=True
            )


# -- guided decoding -------------------------------------------------------------------------------

SCHEMA = {
    "type": "object",
    "properties": {"mood": {"enum": ["good", "bad"]}, "stars": {"type": "integer", "maximum": 9}},
    "required": ["mood"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "m", "schema": SCHEMA, "strict": True}}


def is_document(text: str) -> bool:
    value = json.loads(text)
    return set(value) <= {"mood", "stars"} and value["mood"] in ("good", "bad")


def is_object(text: str) -> bool:
    return isinstance(json.loads(text), dict)


def is_digits(text: str) -> bool:
    return re.fullmatch(r"\d{3,5}", text) is not None


def is_choice(text: str) -> bool:
    return text in ("positive", "negative")


GUIDES: list[tuple[dict[str, Any], Any]] = [
    ({"guided_json": SCHEMA}, is_document),
    ({"guided_json": json.dumps(SCHEMA)}, is_document),
    ({"structured_outputs": {"json": SCHEMA}}, is_document),
    ({"response_format": FORMAT}, is_document),
    ({"response_format": {"type": "json_object"}}, is_object),
    ({"structured_outputs": {"json_object": True}}, is_object),
    ({"guided_regex": r"\d{3,5}"}, is_digits),
    ({"structured_outputs": {"regex": r"\d{3,5}"}}, is_digits),
    ({"guided_choice": ["positive", "negative"]}, is_choice),
    ({"structured_outputs": {"choice": ["positive", "negative"]}}, is_choice),
    ({"guided_grammar": 'root ::= "positive" | "negative"'}, is_choice),
    ({"structured_outputs": {"grammar": 'start: "positive" | "negative"'}}, is_choice),
]


@pytest.mark.parametrize(("fields", "matches"), GUIDES, ids=lambda v: str(v)[:60])
async def test_guided_outputs_match_sampled_and_searched_in_chat_and_completions(
    server: EngineServer, fields: dict[str, Any], matches: Any
) -> None:
    # A free object has no end of its own that random weights would find.
    brace = {str(server.tokenizer.encode("}", add_special_tokens=False)[0]): 20}
    sampled = {"temperature": 1.2, "n": 3, "seed": 1}
    searched = {"use_beam_search": True, "n": 2, "length_penalty": 0, "early_stopping": True}
    async with server.http() as client:
        for how in (sampled, searched):
            body = {"max_tokens": 200, "logit_bias": brace, **fields, **how}
            chat = await client.post("/v1/chat/completions", json={"messages": USER, **body})
            plain = await client.post("/v1/completions", json={"prompt": "x", **body})
            assert (chat.status_code, plain.status_code) == (200, 200), chat.text + plain.text
            choices = chat.json()["choices"] + plain.json()["choices"]
            texts = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
            reasons = [choice["finish_reason"] for choice in choices]
            ended = [text for text, why in zip(texts, reasons, strict=True) if why == "stop"]
            assert all(matches(text) for text in ended), texts
            assert ended, reasons


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"guided_regex": "("}, "guided_regex"),
        ({"guided_json": {"type": "nonsense"}}, "guided_json"),
        ({"guided_json": {"$ref": "#/nowhere"}}, "guided_json"),
        ({"guided_grammar": "root ::= ("}, "guided_grammar"),
        ({"structured_outputs": {"regex": "("}}, "structured_outputs.regex"),
        ({"structured_outputs": {"json": {"type": 5}}}, "structured_outputs.json"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nonsense"}},
                }
            },
            "response_format.json_schema.schema",
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_refused_grammar_names_the_clients_own_field(
    server: EngineServer, fields: dict[str, Any], param: str, streamed: bool
) -> None:
    with pytest.raises(openai.UnprocessableEntityError) as caught:
        await server.openai().chat.completions.create(
            model=MODEL, messages=USER, stream=streamed, extra_body=fields
        )
    assert caught.value.param == param
    async with server.http() as client:
        body = {"prompt": ["a", "b"], "stream": streamed, **fields}
        answer = await client.post("/v1/completions", json=body)
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", *param.split(".")]
