"""Routes beside the completions, keys, metrics, and what the process must not need."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cluster.api_keys import ApiKeys
from tests.deployments.ingress.scripted_server import Server, configuration, serving

CHAT_PATHS = ["/v1", "/v2/ai", "/v2/ai/openai"]
MODEL = "shoal/scripted"
USER: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize("path", CHAT_PATHS)
async def test_models_are_listed_and_found_by_id(server: Server, path: str) -> None:
    client = server.openai(path)
    listed = [model async for model in client.models.list()]
    assert [model.id for model in listed] == [MODEL]
    found = await client.models.retrieve(MODEL)
    assert found == listed[0]
    assert isinstance(found.created, int)
    extra = found.model_extra or {}
    assert (extra["context_length"], extra["license"], extra["languages"]) == (
        256,
        "apache-2.0",
        ["en"],
    )
    with pytest.raises(openai.NotFoundError):
        await client.models.retrieve("no/such")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "hi"}),
        ("/v1/responses", {"input": "hi"}),
        ("/v1/messages", {"messages": USER, "max_tokens": 4}),
        ("/v1/messages/count_tokens", {"messages": USER}),
        ("/v1/tokenize", {"prompt": "hi"}),
    ],
)
async def test_models_of_providers_are_refused_where_they_are_not_served(
    server: Server, path: str, body: dict[str, Any]
) -> None:
    async with server.http() as client:
        answer = await client.post(path, json={"model": "openai/gpt-4o", **body})
    assert answer.status_code == 404
    message = answer.json()["error"]["message"]
    assert message.endswith("provider openai; those are there for POST /v1/chat/completions only.")


async def test_health_readiness_and_metrics_need_no_key(server: Server) -> None:
    async with server.http(key=None) as client:
        assert (await client.get("/health")).status_code == 200
        assert (await client.get("/-/healthz")).status_code == 200
        assert (await client.get("/ready")).status_code == 200
        server.pool.ready = False
        not_ready = await client.get("/ready")
        assert not_ready.status_code == 503
        assert MODEL in not_ready.text
        assert (await client.get("/metrics")).status_code == 200


async def test_metrics_count_requests_tokens_and_latencies(server: Server) -> None:
    server.says("hello world")
    await server.openai().chat.completions.create(model=MODEL, messages=USER)
    async with server.http(key=None) as client:
        await client.post("/v1/chat/completions", json={})
        page = (await client.get("/metrics")).text
    num_tokens = len(server.encode("hello world")) + 1
    label = f'model_name="{MODEL}"'
    assert (
        f'shoal:requests_total{{finish_reason="stop",{label},route="/v1/chat/completions",'
        'status="200"} 1.0' in page
    )
    assert 'status="401"' in page
    assert f"shoal:generation_tokens_total{{{label}}} {num_tokens}.0" in page
    assert f"shoal:time_to_first_token_seconds_count{{{label}}} 1.0" in page
    assert f"shoal:inter_token_latency_seconds_count{{{label}}} {num_tokens - 1}.0" in page
    assert f"shoal:e2e_request_latency_seconds_count{{{label}}} 1.0" in page
    assert f'shoal:kv_cache_usage_perc{{{label},replica="replica-a"}} 0.25' in page
    assert f'shoal:num_requests_running{{{label},replica="replica-a"}} 2.0' in page
    accepted = f'shoal:spec_decode_num_accepted_tokens_total{{{label},replica="replica-a"}} 30.0'
    assert accepted in page


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Basic shoal-test-key", "Bearer"])
async def test_wrong_keys_are_refused_everywhere(server: Server, header: str | None) -> None:
    headers = {} if header is None else {"authorization": header}
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120) as client:
        for method, path in (
            ("POST", "/v1/chat/completions"),
            ("GET", "/v2/ai/models"),
            ("GET", "/nowhere"),
        ):
            answer = await client.request(method, path)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.json()["errors"][0]["code"] == "10009"
    with pytest.raises(openai.AuthenticationError):
        await server.openai(key="wrong").models.list()


async def test_no_key_is_needed_when_that_was_chosen(checkpoint: Path) -> None:
    keys = ApiKeys([], required=False)
    async with serving(checkpoint, configuration(), keys) as server, server.http(None) as client:
        assert (await client.get("/v1/models")).status_code == 200


async def test_unknown_paths_and_methods_have_our_error_shape(server: Server) -> None:
    async with server.http() as client:
        missing = await client.post("/v1/nothing", json={})
        assert (missing.status_code, missing.json()["errors"][0]["code"]) == (404, "10005")
        wrong = await client.get("/v1/chat/completions")
        assert (wrong.status_code, wrong.json()["errors"][0]["code"]) == (405, "10030")
        assert wrong.headers["allow"] == "POST"
        assert (await client.options("/v1/models")).status_code == 405


def test_the_ingress_needs_neither_torch_nor_ray_nor_transformers() -> None:
    code = (
        "import sys, deployments.ingress.app\n"
        "print([name for name in ('torch', 'transformers', 'ray') if name in sys.modules])"
    )
    root = Path(__file__).resolve().parents[3]
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root
    )
    assert result.stdout.strip() == "[]"
