"""Tokenizing and detokenizing over HTTP agree with what completions and chats read."""

from typing import Any

import pytest

from tests.deployments.ingress.scripted_server import CONTEXT, Server

USER = [{"role": "user", "content": "hello there"}]


async def post(server: Server, path: str, **body: Any) -> Any:
    async with server.http() as client:
        answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("prefix", ["", "/v1", "/v2/ai", "/v2/ai/openai"])
async def test_a_text_is_tokenized_as_completions_read_it(server: Server, prefix: str) -> None:
    answer = await post(server, f"{prefix}/tokenize", prompt="hello world")
    await post(server, "/v1/completions", prompt="hello world")
    assert answer == {
        "count": len(answer["tokens"]),
        "max_model_len": CONTEXT,
        "tokens": server.pool.requests[-1].prompt_token_ids,
        "token_strs": None,
    }
    plain = await post(server, "/v1/tokenize", prompt="hello world", add_special_tokens=False)
    assert plain["tokens"] == answer["tokens"][1:] == server.encode("hello world")


async def test_messages_are_tokenized_as_chats_read_them(server: Server) -> None:
    answer = await post(server, "/v1/tokenize", messages=USER)
    await post(server, "/v1/chat/completions", messages=USER)
    assert answer["tokens"] == server.pool.requests[-1].prompt_token_ids
    extra = await post(server, "/v1/tokenize", messages=USER, add_special_tokens=True)
    assert extra["tokens"] == [0, *answer["tokens"]]


async def test_the_generation_prompt_can_be_left_out(server: Server) -> None:
    whole = await post(server, "/v1/tokenize", messages=USER)
    without = await post(server, "/v1/tokenize", messages=USER, add_generation_prompt=False)
    num_left_out = len(server.encode("<assistant>"))
    assert without["tokens"] == whole["tokens"][:-num_left_out]


async def test_tokens_come_as_the_vocabulary_spells_them_when_asked(server: Server) -> None:
    answer = await post(server, "/tokenize", prompt="hello wörld", return_token_strs=True)
    assert answer["token_strs"][0] == "<|bos|>"
    assert "".join(answer["token_strs"][1:]) == "helloĠwÃ¶rld"


async def test_detokenizing_undoes_tokenizing(server: Server) -> None:
    text = "hello wörld 🙂 <|eos|>"
    tokens = (await post(server, "/v1/tokenize", prompt=text))["tokens"]
    assert await post(server, "/v1/detokenize", tokens=tokens) == {"prompt": f"<|bos|>{text}"}
    assert await post(server, "/detokenize", tokens=[]) == {"prompt": ""}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": ["a"]}, "prompt"),
        ("/tokenize", {"prompt": "a", "messages": USER}, "prompt"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": USER, "continue_final_message": True}, "continue_final_message"),
        ("/tokenize", {"messages": USER, "reasoning_effort": "low"}, "reasoning_effort"),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens.0"),
        ("/detokenize", {"tokens": [10**6]}, "tokens"),
    ],
)
async def test_wrong_fields_are_named(server: Server, path: str, body: Any, field: str) -> None:
    async with server.http() as client:
        answer = await client.post(path, json=body)
        assert answer.status_code == 422
        assert answer.json()["error"]["param"] == field


async def test_unknown_models_are_not_found(server: Server) -> None:
    async with server.http() as client:
        for path, body in (("/tokenize", {"prompt": "x"}), ("/detokenize", {"tokens": [1]})):
            answer = await client.post(path, json={**body, "model": "none"})
            assert answer.status_code == 404
