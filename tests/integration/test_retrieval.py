"""Retrieval on a real cluster: the demo models, a Redis of our own, the sample bucket."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from rich.console import Console

from cluster.api_keys import load_or_create_key
from cluster.cli_bucket_client import BucketClient
from cluster.cli_sample import SAMPLE_BUCKET, SAMPLE_QUESTION, ensure_sample_bucket
from cluster.config import parse_config
from deployments import launch
from deployments.redis_supervisor import read_state
from tests.integration.cluster_probe import wait_for
from tests.integration.conftest import Cluster, free_port, share_kernels

pytestmark = pytest.mark.cluster

ANSWER = "Mei Tanaka"
TOOL = {"type": "retrieval", "retrieval": {"bucket_ids": [SAMPLE_BUCKET]}}


@pytest.fixture(scope="module")
def retrieving(
    tmp_path_factory: pytest.TempPathFactory, session_environment: pytest.MonkeyPatch
) -> Iterator[Cluster]:
    home = tmp_path_factory.mktemp("retrieval-home")
    previous = os.environ.get("SHOAL_HOME")
    session_environment.setenv("SHOAL_HOME", str(home))
    share_kernels(home)
    key = load_or_create_key(home)
    config = parse_config(
        {
            "models": [{"name": "shoal/demo-chat", "source": "demo"}],
            "http": {"port": free_port()},
            "auth": {"api_keys": [key.stored.model_dump()]},
        }
    )
    said: list[str] = []
    try:
        result = launch.up(config, say=said.append)
        with BucketClient(result.url, api_key=key.text) as client:
            ensure_sample_bucket(client, console=Console(stderr=True))
        yield Cluster(config=config, url=result.url, api_key=key.text, home=home, said=said)
    finally:
        launch.down()
        if previous is None:
            session_environment.delenv("SHOAL_HOME")
        else:
            session_environment.setenv("SHOAL_HOME", previous)


@pytest.fixture
def client(retrieving: Cluster) -> Iterator[openai.OpenAI]:
    url = f"{retrieving.url}/v1"
    with openai.OpenAI(base_url=url, api_key=retrieving.api_key, max_retries=0) as client:
        yield client


def ask(client: openai.OpenAI, **how: object) -> openai.types.chat.ChatCompletionMessage:
    completion = client.chat.completions.create(
        model="shoal/demo-chat",
        messages=[{"role": "user", "content": SAMPLE_QUESTION}],
        temperature=0,
        max_tokens=48,
        **how,  # type: ignore[call-overload]
    )
    return completion.choices[0].message


def test_the_sample_question_is_answered_from_the_bucket_and_not_without_it(
    client: openai.OpenAI,
) -> None:
    grounded = ask(client, tools=[TOOL])
    assert ANSWER in grounded.content
    sources = [chunk["filename"] for chunk in grounded.retrieval["chunks"]]
    assert "people.md" in sources
    assert ANSWER not in ask(client).content


def test_a_stream_answers_the_same_and_ends_with_its_sources(client: openai.OpenAI) -> None:
    text, retrieval = "", None
    stream = client.chat.completions.create(
        model="shoal/demo-chat",
        messages=[{"role": "user", "content": SAMPLE_QUESTION}],
        temperature=0,
        max_tokens=48,
        stream=True,
        tools=[TOOL],  # type: ignore[list-item]
    )
    for chunk in stream:
        delta = chunk.choices[0].delta
        text += delta.content or ""
        retrieval = getattr(delta, "retrieval", None) or retrieval
        assert delta.tool_calls is None
    assert ANSWER in text
    assert retrieval is not None
    assert {chunk["bucket_id"] for chunk in retrieval["chunks"]} == {SAMPLE_BUCKET}


def test_a_changed_file_changes_the_answer_by_itself(
    retrieving: Cluster, client: openai.OpenAI, tmp_path: Path
) -> None:
    changed = tmp_path / "people.md"
    changed.write_text("# Who does what\n\nThe legal team is led by Aino Virtanen.\n")
    with BucketClient(retrieving.url, api_key=retrieving.api_key) as buckets:
        buckets.put(SAMPLE_BUCKET, "people.md", changed, sent=lambda _: None)

        def found_texts() -> str:
            message = ask(client, tools=[TOOL])
            return " ".join(chunk["text"] for chunk in message.retrieval["chunks"])

        wait_for(lambda: "Aino Virtanen" in found_texts())
        assert ANSWER not in found_texts()
        original = Path(launch.__file__).parents[1] / "cluster" / "sample_bucket" / "people.md"
        buckets.put(SAMPLE_BUCKET, "people.md", original, sent=lambda _: None)
        wait_for(lambda: ANSWER in found_texts())


def test_redis_killed_leaves_chat_alone_and_comes_back_without_a_restart(
    retrieving: Cluster, client: openai.OpenAI
) -> None:
    state = read_state(retrieving.home / "redis")
    assert state is not None
    server = psutil.Process(state.server_pid)
    server.suspend()
    try:
        with pytest.raises(openai.InternalServerError) as refused:
            # Within two seconds on a quiet machine; ten times as long is still no hanging.
            ask(client, tools=[TOOL], timeout=20.0)
        assert refused.value.status_code == httpx.codes.SERVICE_UNAVAILABLE
        assert int(refused.value.response.headers["retry-after"]) >= 1
        assert ask(client).content
    finally:
        server.send_signal(signal.SIGKILL)

    def answers_again() -> bool:
        try:
            return ANSWER in (ask(client, tools=[TOOL]).content or "")
        except openai.InternalServerError:
            return False

    wait_for(answers_again)


def test_an_unknown_bucket_is_named_and_nothing_else_notices(client: openai.OpenAI) -> None:
    tool = {"type": "retrieval", "retrieval": {"bucket_ids": ["no-such-bucket"]}}
    with pytest.raises(openai.NotFoundError, match="no-such-bucket"):
        ask(client, tools=[tool])
    assert ask(client).content
