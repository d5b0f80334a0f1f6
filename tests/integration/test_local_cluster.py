"""One real cluster, used as a client would: started, asked, disturbed, stopped."""

import os
import signal
import socket
from pathlib import Path

import httpx
import openai
import psutil
import pytest
from safetensors.numpy import load_file, save_file

from cluster.config import AuthConfig
from deployments import launch
from deployments.local_ray import LaunchError, LocalRay, processes_of
from tests.integration.cluster_probe import client_of, gauge, processes_titled, wait_for
from tests.integration.conftest import Cluster, free_port, make_config

pytestmark = pytest.mark.cluster

MESSAGES: list[openai.types.chat.ChatCompletionMessageParam] = [
    {"role": "user", "content": "words"}
]


def test_starting_tells_what_it_does(cluster: Cluster) -> None:
    assert "starting Ray on this machine" in cluster.said
    assert "tiny: ready" in cluster.said
    assert "synthetic: ready" in cluster.said


def test_a_streamed_chat_request_is_answered(cluster: Cluster) -> None:
    stream = client_of(cluster).chat.completions.create(
        model="tiny",
        messages=MESSAGES,
        max_tokens=8,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
        extra_body={"ignore_eos": True},
    )
    chunks = list(stream)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 8


def test_the_same_prompt_gives_the_same_answer_whole_and_streamed(cluster: Cluster) -> None:
    client = client_of(cluster)
    whole = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=16, temperature=0
    )
    stream = client.chat.completions.create(
        model="tiny", messages=MESSAGES, max_tokens=16, temperature=0, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert "".join(pieces) == whole.choices[0].message.content


def test_leaving_midway_frees_the_blocks(cluster: Cluster) -> None:
    stream = client_of(cluster).chat.completions.create(
        model="synthetic", messages=MESSAGES, max_tokens=400, stream=True
    )
    next(iter(stream))
    wait_for(lambda: gauge(cluster, "num_requests_running", "synthetic") == 1)
    stream.close()
    wait_for(lambda: gauge(cluster, "num_requests_running", "synthetic") == 0)
    assert gauge(cluster, "kv_cache_usage_perc", "synthetic") == 0


def test_the_ingress_process_has_no_torch(cluster: Cluster) -> None:
    [ingress] = processes_titled(cluster, "ServeReplica:shoal:Ingress")
    [replica] = processes_titled(cluster, "ServeReplica:shoal:ModelReplica-tiny")
    assert "torch" not in Path(f"/proc/{ingress.pid}/maps").read_text(encoding="utf-8")
    assert "torch" in Path(f"/proc/{replica.pid}/maps").read_text(encoding="utf-8")


def test_nothing_listens_beyond_loopback(cluster: Cluster) -> None:
    addresses = {
        connection.laddr.ip
        for process in processes_of(cluster.state())
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert addresses <= {"127.0.0.1", "::1", "::ffff:127.0.0.1"}
    assert addresses


def test_what_lies_in_the_home_is_private(cluster: Cluster) -> None:
    for name in ("cluster_secret", "ray_token", "api_key"):
        assert (cluster.home / name).stat().st_mode & 0o077 == 0
    assert Path(cluster.state().run_folder).stat().st_mode & 0o077 == 0


def test_a_wrong_key_is_refused(cluster: Cluster) -> None:
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{cluster.url}/v1", api_key="wrong", max_retries=0).models.list()


def test_up_on_a_running_cluster_does_nothing(cluster: Cluster) -> None:
    before = {process.pid for process in processes_of(cluster.state())}
    said: list[str] = []
    result = launch.up(cluster.config, say=said.append)
    assert result.was_running
    assert not any("Ray" in line or "deploy" in line for line in said)
    assert {process.pid for process in processes_of(cluster.state())} == before


def test_the_status_names_the_pools_and_their_load(cluster: Cluster) -> None:
    status = launch.status(cluster.config)
    assert status.is_running
    assert status.url == cluster.url
    assert [pool.model_name for pool in status.pools] == ["tiny", "synthetic"]
    assert {pool.status for pool in status.pools} == {"HEALTHY"}
    assert [pool.replica_states for pool in status.pools] == [{"RUNNING": 1}] * 2


def test_a_stream_whose_only_replica_is_killed_waits_for_the_new_one_and_goes_on(
    cluster: Cluster,
) -> None:
    client = client_of(cluster)
    stream = client.chat.completions.create(
        model="synthetic",
        messages=MESSAGES,
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
    )
    next(iter(stream))
    [replica] = processes_titled(cluster, "ServeReplica:shoal:ModelReplica-synthetic")
    os.kill(replica.pid, signal.SIGKILL)
    chunks = list(stream)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 200
    answer = client.chat.completions.create(model="synthetic", messages=MESSAGES, max_tokens=3)
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 3


def test_a_killed_ingress_is_replaced(cluster: Cluster) -> None:
    [ingress] = processes_titled(cluster, "ServeReplica:shoal:Ingress")
    os.kill(ingress.pid, signal.SIGKILL)

    def is_ready() -> bool:
        try:
            return httpx.get(f"{cluster.url}/ready", timeout=120).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    wait_for(is_ready)
    assert client_of(cluster).models.list().data


def test_down_leaves_no_process_and_no_socket_behind(cluster: Cluster) -> None:
    state = cluster.state()
    assert launch.down() > 0
    assert processes_of(state) == []
    assert not Path(state.run_folder).exists()
    assert not launch.status(cluster.config).is_running
    assert launch.down() == 0
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", cluster.config.http.port)) != 0


def test_a_start_that_fails_in_the_replica_gives_one_message_and_leaves_nothing_running(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    incomplete = tmp_path / "incomplete"
    incomplete.mkdir()
    for path in tiny_checkpoint.glob("*.*"):
        (incomplete / path.name).write_bytes(path.read_bytes())
    # Sound files that do not fit together: only the engine finds out.
    weights = load_file(tiny_checkpoint / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, incomplete / "model.safetensors")
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path / "home"))
    config = make_config(port=free_port(), tiny=incomplete).model_copy(
        update={"auth": AuthConfig(required=False)}
    )
    states = []
    with pytest.raises(LaunchError) as caught:
        launch.up(config, say=lambda _: states.append(LocalRay(tmp_path / "home").state()))
    assert "model.norm.weight" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "Traceback" not in str(caught.value)
    started = [state for state in states if state is not None]
    assert started
    assert processes_of(started[-1]) == []
