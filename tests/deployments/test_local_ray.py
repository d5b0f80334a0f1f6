"""What belongs to the cluster of one home, and what does not."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.config import ShoalConfig, parse_config
from deployments.local_ray import (
    CLUSTER_ID_VARIABLE,
    ClusterState,
    LaunchError,
    LocalRay,
    fresh_run_folder,
    needed_cpus,
    processes_of,
)


def config_of(**changes: object) -> ShoalConfig:
    return parse_config({"models": [{"name": "m", "source": "demo", **changes}], "embedders": []})


def state_of(cluster_id: str, *, session_id: int = 0, run_folder: str = "/nowhere") -> ClusterState:
    return ClusterState(
        cluster_id=cluster_id,
        ray_address="127.0.0.1:1",
        run_folder=run_folder,
        session_id=session_id,
        num_cpus=1,
        http_host="127.0.0.1",
        http_port=1,
        deployed=config_of(),
    )


@contextmanager
def sleeper(
    *, mark: str | None = None, title: str = "sleeper", new_session: bool = False
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that says so when it runs, and waits for its standard input to close."""
    environment = {name: v for name, v in os.environ.items() if name != CLUSTER_ID_VARIABLE}
    if mark is not None:
        environment[CLUSTER_ID_VARIABLE] = mark
    code = "import sys; sys.stdout.write('x'); sys.stdout.flush(); sys.stdin.read()"
    process = subprocess.Popen(
        [title, "-c", code],
        executable=sys.executable,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=new_session,
    )
    assert process.stdout is not None
    process.stdout.read(1)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_mark_in_the_environment_decides() -> None:
    with sleeper(mark="ours") as ours, sleeper(mark="another's"), sleeper():
        assert [process.pid for process in processes_of(state_of("ours"))] == [ours.pid]


def test_rays_titled_processes_count_by_their_session() -> None:
    with (
        sleeper(title="ray::Agent", new_session=True) as agent,
        sleeper(title="ray::Agent", new_session=True),
        sleeper(),
    ):
        found = processes_of(state_of("ours", session_id=agent.pid))
        assert [process.pid for process in found] == [agent.pid]


def test_stopping_ends_what_is_ours_and_forgets_it(tmp_path: Path) -> None:
    local_ray = LocalRay(tmp_path)
    run_folder = tmp_path / "run"
    run_folder.mkdir()
    local_ray.write_state(state_of("ours", run_folder=str(run_folder)))
    with sleeper(mark="ours") as ours, sleeper(mark="another's") as other:
        assert local_ray.stop() == 1
        assert ours.wait(5) != 0
        assert other.poll() is None
    assert local_ray.state() is None
    assert not run_folder.exists()
    assert local_ray.stop() == 0


def test_the_state_is_read_as_it_was_written(tmp_path: Path) -> None:
    local_ray = LocalRay(tmp_path)
    assert local_ray.state() is None
    local_ray.write_state(state_of("ours"))
    assert local_ray.state() == state_of("ours")
    assert stat.S_IMODE((tmp_path / "cluster.json").stat().st_mode) == 0o600


def test_a_state_that_makes_no_sense_is_reported_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{", encoding="utf-8")
    with pytest.raises(LaunchError, match=r"cluster\.json"):
        LocalRay(tmp_path).state()


def test_a_state_without_processes_is_not_a_running_cluster(tmp_path: Path) -> None:
    assert not LocalRay(tmp_path).is_running(state_of("nobody"))


def test_drivers_are_isolated_from_the_callers_ray_and_do_not_get_the_api_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:else")
    monkeypatch.setenv("RAY_NAMESPACE", "theirs")
    monkeypatch.setenv("SHOAL_API_KEY", "secret")
    environment = LocalRay(tmp_path).driver_environment(state_of("ours"))
    assert environment["RAY_ADDRESS"] == "127.0.0.1:1"
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_NAMESPACE" not in environment
    assert "SHOAL_API_KEY" not in environment


def test_the_run_folder_is_in_the_home_private_and_empty(tmp_path: Path) -> None:
    home = Path("/tmp") / f"shoal-test-{os.getpid()}"  # short, unlike tmp_path
    home.mkdir(mode=0o700)
    try:
        (home / "run").mkdir()
        (home / "run" / "old").touch()
        folder = fresh_run_folder(home)
        assert folder == home / "run"
        assert list(folder.iterdir()) == []
        assert folder.stat().st_mode & 0o777 == 0o700
    finally:
        (home / "run").rmdir()
        home.rmdir()


def test_a_long_home_gets_a_short_private_run_folder_of_its_own(tmp_path: Path) -> None:
    one, other = tmp_path / ("x" * 80), tmp_path / ("y" * 80)
    folders = [fresh_run_folder(home) for home in (one, other)]
    try:
        assert folders[0] != folders[1]
        for folder in folders:
            assert len(str(folder)) <= 40
            assert folder.stat().st_mode & 0o777 == 0o700
        assert fresh_run_folder(one) == folders[0]
    finally:
        for folder in folders:
            folder.rmdir()


def test_a_configuration_that_reserves_more_than_the_machine_has_still_fits() -> None:
    num_cores = os.cpu_count() or 1
    assert needed_cpus(config_of(num_cpus=0.1)) == max(num_cores, 2)
    assert needed_cpus(config_of(num_cpus=3, num_replicas=num_cores)) == 3 * num_cores + 1
