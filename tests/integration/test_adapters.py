"""LoRA adapters of a running cluster: two of them and none at once, over HTTP."""

import asyncio
from pathlib import Path

import httpx
import openai
import pytest

from cluster.config import EngineConfig
from cluster.types import SamplingParams
from models.llm import LLM
from tests.integration.cluster_probe import client_of
from tests.integration.conftest import ADAPTERS, Cluster
from tests.models.adapters.adapter_samples import merged_checkpoint

pytestmark = pytest.mark.cluster

NAMES = {"tiny": None, "tiny-formal": "formal", "tiny:brief": "brief"}
PROMPTS = [[0, *range(20 + start, 60 + start)] for start in range(6)]
NUM_TOKENS = 12


@pytest.fixture(scope="module")
def expected(
    tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[str]]:
    """What merged checkpoints say to the prompts, without a server."""
    folder = tmp_path_factory.mktemp("merged")
    texts: dict[str, list[str]] = {}
    for name, subfolder in NAMES.items():
        source = tiny_checkpoint
        if subfolder is not None:
            adapter = tiny_checkpoint / ADAPTERS / subfolder
            source = merged_checkpoint(folder / subfolder, tiny_checkpoint, adapter)
        params = SamplingParams(temperature=0.0, max_tokens=NUM_TOKENS, ignore_eos=True)
        with LLM(source, engine_config=EngineConfig(max_model_len=256)) as llm:
            outputs = llm.generate(PROMPTS, params)
        texts[name] = [output.continuations[0].text for output in outputs]
    assert texts["tiny"] != texts["tiny-formal"] != texts["tiny:brief"]
    return texts


async def test_requests_for_different_adapters_run_together_and_get_their_own_answers(
    cluster: Cluster, expected: dict[str, list[str]]
) -> None:
    async with openai.AsyncOpenAI(
        base_url=f"{cluster.url}/v1", api_key=cluster.api_key, max_retries=0
    ) as client:

        async def ask(name: str, prompt: list[int]) -> tuple[str, str]:
            answer = await client.completions.create(
                model=name,
                prompt=prompt,
                max_tokens=NUM_TOKENS,
                temperature=0,
                extra_body={"ignore_eos": True},
            )
            return answer.model, answer.choices[0].text

        asked = [(name, k) for k in range(len(PROMPTS)) for name in NAMES]
        answers = await asyncio.gather(*(ask(name, PROMPTS[k]) for name, k in asked))
    assert answers == [(name, expected[name][k]) for name, k in asked]


def test_every_endpoint_takes_an_adapter_for_a_model(cluster: Cluster) -> None:
    client = client_of(cluster)
    chat = client.chat.completions.create(
        model="tiny:brief",
        messages=[{"role": "user", "content": "words"}],
        max_tokens=4,
        stream=True,
    )
    assert {chunk.model for chunk in chat} == {"tiny:brief"}
    response = client.responses.create(model="tiny:brief", input="words", max_output_tokens=16)
    assert response.model == "tiny:brief"
    message = httpx.post(
        f"{cluster.url}/v1/messages",
        headers={"x-api-key": cluster.api_key},
        json={
            "model": "tiny:brief",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": "words"}],
        },
    )
    assert message.json()["model"] == "tiny:brief"


def test_adapters_are_listed_with_their_base(cluster: Cluster) -> None:
    models = httpx.get(
        f"{cluster.url}/v1/models", headers={"Authorization": f"Bearer {cluster.api_key}"}
    ).json()["data"]
    assert [(model["id"], model["parent"]) for model in models if "tiny" in model["id"]] == [
        ("tiny", None),
        ("tiny-formal", "tiny"),
        ("tiny:brief", "tiny"),
        ("tiny:broken", "tiny"),
        ("tiny:formal", "tiny"),
    ]


def test_an_unknown_adapter_is_not_found_and_a_broken_one_says_why(cluster: Cluster) -> None:
    client = client_of(cluster)
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="tiny:nobody", prompt="words")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="use_dora = true is not supported"):
        client.completions.create(model="tiny:broken", prompt="words")
    assert client.completions.create(model="tiny", prompt="words").choices
