"""A running cluster is brought to another configuration under load, and no client notices."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import openai
import pytest

from cluster.config import ShoalConfig, parse_config
from deployments import launch
from tests.integration.cluster_probe import client_of, processes_titled
from tests.integration.conftest import Cluster, running_cluster

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1800)]

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "words"}
]
NUM_TOKENS = 60  # of each stream; 20 ms each
TIMEOUT_S = 900.0


def model(name: str, source: Path, **settings: object) -> dict[str, object]:
    engine = {"synthetic_step_ms": 20}
    return {"name": name, "source": str(source), "num_cpus": 0.5, "engine": engine, **settings}


@pytest.fixture(scope="module")
def deployed(
    tiny_checkpoint: Path,
    tmp_path_factory: pytest.TempPathFactory,
    session_environment: pytest.MonkeyPatch,
) -> Iterator[Cluster]:
    models = [
        model("steady", tiny_checkpoint),
        # Another replica of this one has no room beside it.
        model("changing", tiny_checkpoint, num_cpus=1.5),
        model("going", tiny_checkpoint),
    ]
    home = tmp_path_factory.mktemp("deploy")
    with running_cluster(home, session_environment, models=models) as cluster:
        yield cluster


@dataclass(slots=True)
class Load:
    """Streams of one model, one after the other."""

    num_done: int = 0
    problems: list[str] = field(default_factory=list)

    async def run(self, client: openai.AsyncOpenAI, name: str, max_tokens: int) -> None:
        try:
            stream = await client.chat.completions.create(
                model=name,
                messages=MESSAGES,
                max_tokens=max_tokens,
                stream=True,
                stream_options={"include_usage": True},
            )
            usage = None
            async for chunk in stream:
                usage = chunk.usage or usage
            if usage is None or usage.completion_tokens != max_tokens:
                self.problems.append(f"cut: {usage}")
            self.num_done += 1
        except openai.APIStatusError as error:
            self.problems.append(repr(error))
            await asyncio.sleep(0.1)
        except openai.APIError as error:  # after its beginning
            self.problems.append(f"cut: {error!r}")


@asynccontextmanager
async def under_load(cluster: Cluster, *names: str) -> AsyncIterator[dict[str, Load]]:
    """Streams without a pause, four of each model; ended when the block is over."""
    loads = {name: Load() for name in names}
    is_over = asyncio.Event()

    async def keep_asking(name: str) -> None:
        while not is_over.is_set():
            await loads[name].run(client, name, NUM_TOKENS)

    async with (
        openai.AsyncOpenAI(
            base_url=f"{cluster.url}/v1", api_key=cluster.api_key, max_retries=0, timeout=TIMEOUT_S
        ) as client,
        asyncio.TaskGroup() as group,
    ):
        for name in names:
            for _ in range(4):
                group.create_task(keep_asking(name))
        try:
            yield loads
        finally:
            is_over.set()


def changed(cluster: Cluster, *models: dict[str, object], **more: object) -> ShoalConfig:
    config = cluster.config.model_dump(mode="json")
    return parse_config({**config, "models": list(models), **more})


def pids(cluster: Cluster, *titles: str) -> list[set[int]]:
    return [{process.pid for process in processes_titled(cluster, title)} for title in titles]


async def test_pools_are_changed_added_and_removed_without_a_failed_or_cut_stream(
    deployed: Cluster, tiny_checkpoint: Path
) -> None:
    titles = ("ServeReplica:shoal:Ingress", "ModelReplica-steady", "ModelReplica-changing")
    before = pids(deployed, *titles)
    config = changed(
        deployed,
        model("steady", tiny_checkpoint, aliases=["calm"], num_replicas=1),
        model("changing", tiny_checkpoint, num_cpus=1.5, engine={"synthetic_step_ms": 15}),
        model("coming", tiny_checkpoint),
        default_model="calm",
    )
    async with under_load(deployed, "steady", "changing", "going") as loads:
        result = await asyncio.to_thread(launch.up, config, say=lambda _: None)
    assert not result.was_running
    # Of the model that goes, what was under way has ended; what comes later is refused.
    going = loads.pop("going")
    assert going.num_done > 0
    assert not [problem for problem in going.problems if "cut" in problem]
    for name, load in loads.items():
        assert load.problems == [], name
        assert load.num_done > 0, name
    after = pids(deployed, *titles)
    assert after[:2] == before[:2], "the ingress and the unchanged pool were not touched"
    assert not after[2] & before[2], "the changed pool has a new replica"
    names = [one.id for one in client_of(deployed).models.list().data]
    assert names == ["steady", "changing", "coming"]
    with pytest.raises(openai.NotFoundError):
        client_of(deployed).chat.completions.create(model="going", messages=MESSAGES)
    for name in ("coming", "calm"):
        answer = client_of(deployed).chat.completions.create(
            model=name, messages=MESSAGES, max_tokens=3
        )
        assert answer.model == ("coming" if name == "coming" else "steady")


async def test_a_pool_that_cannot_start_leaves_all_as_it_was(
    deployed: Cluster, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    # Sound by itself: only the replica finds out.
    source = shutil.copytree(tiny_checkpoint, tmp_path / "broken")
    config = changed(
        deployed,
        model("steady", tiny_checkpoint),
        model("broken", source, device="cuda", engine={"max_model_len": 64}),
    )
    before = pids(deployed, "ServeReplica:shoal:Ingress", "ModelReplica-steady")
    async with under_load(deployed, "steady") as loads:
        with pytest.raises(launch.LaunchError, match="broken"):
            await asyncio.to_thread(launch.up, config, say=lambda _: None)
    assert loads["steady"].problems == []
    assert pids(deployed, "ServeReplica:shoal:Ingress", "ModelReplica-steady") == before
