"""The cluster on this machine: `up`, `down`, `status`.

`up` checks what can be checked without Ray, starts Ray (`local_ray`) and, where none is configured,
a Redis server (`embedded_redis`), has the application deployed by the driver process, and returns
when the API is ready. What fails leaves one readable message
and nothing running. Neither torch nor ray is imported in this process.
"""

import fcntl
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cluster.config import ShoalConfig, shoal_home
from deployments import embedded_redis, running_ray
from deployments.driver_process import drive
from deployments.embedded_redis import EmbeddedRedisError
from deployments.http_listener import check_port_is_free
from deployments.launch_events import (
    Event,
    Failed,
    NodeStatus,
    PoolStatus,
    Ready,
    ServiceStatus,
)
from deployments.launch_events import Report as StatusReport
from deployments.local_ray import (
    ClusterState,
    LaunchError,
    LocalRay,
    needed_cpus,
)
from deployments.preflight import check_model
from deployments.readiness import (
    check_redis,
    is_ready,
    local_url,
    needs_own_redis,
    wait_until_ready,
    with_redis_url,
)
from deployments.replica_endpoint import ReplicaFacts

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class UpResult:
    """A cluster that answers."""

    url: str
    was_running: bool  # with this very configuration: nothing was done
    facts: tuple[ReplicaFacts, ...]  # empty when nothing was done


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """The cluster of this SHOAL_HOME."""

    is_running: bool
    url: str = ""
    status: str = ""  # Serve's word for the application: RUNNING, DEPLOYING, UNHEALTHY, …
    pools: tuple[PoolStatus, ...] = ()
    services: tuple[ServiceStatus, ...] = ()
    nodes: tuple[NodeStatus, ...] = ()
    num_processes: int = 0


def up(config: ShoalConfig, *, say: Say) -> UpResult:
    """Start the cluster, or bring the running one to this configuration.

    `config` carries every API key (as digests), the first one included. `say` gets one line per
    phase.

    Raises:
        LaunchError: it did not come up; the message is meant for a person, nothing is left running
            (a cluster that ran before goes back to its previous configuration).
    """
    home = shoal_home()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    for model in config.models:
        say(f"{model.name}: checking {model.source}")
        try:
            check_model(model)
        except ValueError as error:
            raise LaunchError(f"{model.name}: {error}") from error
    local_ray = LocalRay(home)
    with _only_one_launcher(home):
        state = local_ray.state()
        if state is not None and not _can_keep(local_ray, state, config):
            say("stopping what is left of the previous cluster")
            _stop(local_ray)
            state = None
        if state is not None:
            return _update(local_ray, state, config, say)
        return _start(local_ray, config, say)


def down() -> int:
    """Stop every process of this SHOAL_HOME's cluster; return how many there were.

    Raises:
        LaunchError: a process survived, or a launcher is at work.
    """
    home = shoal_home()
    if not home.exists():
        return 0
    with _only_one_launcher(home):
        return _stop(LocalRay(home))


def status(config: ShoalConfig) -> ClusterStatus:
    """What runs, how many replicas in which state, and how busy they are.

    Raises:
        LaunchError: the cluster runs and does not answer.
    """
    local_ray = LocalRay(shoal_home())
    state = local_ray.state()
    if state is None or not local_ray.is_running(state):
        return _status_on_running_ray(config)
    event = _drive("status", local_ray, state, config, _say_nothing)
    if not isinstance(event, StatusReport):
        message = event.message if isinstance(event, Failed) else "no report"
        raise LaunchError(f"the cluster runs but does not say how it is: {message}")
    return ClusterStatus(
        is_running=True,
        url=local_url(state.http_host, state.http_port),
        status=event.status,
        pools=tuple(event.pools),
        services=tuple(event.services),
        nodes=tuple(event.nodes),
        num_processes=local_ray.num_processes(state),
    )


def _status_on_running_ray(config: ShoalConfig) -> ClusterStatus:
    report = running_ray.report(config)
    if report is None:
        return ClusterStatus(is_running=False)
    return ClusterStatus(
        is_running=True,
        url=local_url(config.http.host, config.http.port),
        status=report.status,
        pools=tuple(report.pools),
        services=tuple(report.services),
    )


def logs_folder() -> Path:
    """Where the logs of ingresses, replicas and the controller are."""
    return shoal_home() / "logs"


def _start(local_ray: LocalRay, config: ShoalConfig, say: Say) -> UpResult:
    _check_port(config)
    _stop(local_ray)  # a server of a cluster whose record is lost
    say("starting Ray on this machine")
    with _stopping_on_failure(local_ray):
        state = local_ray.start(config)
        return _deploy(local_ray, state, config, say)


def _stop(local_ray: LocalRay) -> int:
    """Ray's processes first: they may still have something to write."""
    num_processes = local_ray.stop()
    try:
        return num_processes + embedded_redis.stop(shoal_home())
    except EmbeddedRedisError as error:
        raise LaunchError(str(error)) from error


def _with_redis(
    local_ray: LocalRay, state: ClusterState, config: ShoalConfig, say: Say
) -> ShoalConfig:
    """The configuration with the address of a Redis server, ours where it names none."""
    if not needs_own_redis(config):
        return config
    say("starting Redis on this machine")
    try:
        url = embedded_redis.start(
            shoal_home(),
            Path(state.run_folder),
            environment=local_ray.inherited_environment(),
        )
    except EmbeddedRedisError as error:
        raise LaunchError(str(error)) from error
    return with_redis_url(config, url)


def _update(local_ray: LocalRay, state: ClusterState, config: ShoalConfig, say: Say) -> UpResult:
    url = local_url(config.http.host, config.http.port)
    if state.deployed == config and is_ready(url):
        return UpResult(url=url, was_running=True, facts=())
    if (config.http.host, config.http.port) != (state.http_host, state.http_port):
        _check_port(config)
    say("the cluster runs; deploying the changed configuration")
    try:
        return _deploy(local_ray, state, config, say)
    except LaunchError:
        if state.deployed is not None:
            say("it failed; going back to the previous configuration")
            _deploy(local_ray, state, state.deployed, say)
        raise


def _can_keep(local_ray: LocalRay, state: ClusterState, config: ShoalConfig) -> bool:
    return local_ray.is_running(state) and needed_cpus(config) <= state.num_cpus


def _deploy(local_ray: LocalRay, state: ClusterState, config: ShoalConfig, say: Say) -> UpResult:
    complete = _with_redis(local_ray, state, config, say)
    check_redis(complete, say)
    event = _drive("deploy", local_ray, state, complete, say)
    if not isinstance(event, Ready):
        raise LaunchError(event.message if isinstance(event, Failed) else "no outcome")
    if not needs_own_redis(config):
        embedded_redis.stop(shoal_home())  # of the previous configuration
    url = local_url(config.http.host, config.http.port)
    wait_until_ready(url)
    local_ray.write_state(
        msgspec.structs.replace(
            state,
            http_host=config.http.host,
            http_port=config.http.port,
            deployed=config,
        )
    )
    return UpResult(url=url, was_running=False, facts=tuple(event.facts))


def _drive(
    command: str, local_ray: LocalRay, state: ClusterState, config: ShoalConfig, say: Say
) -> Event:
    return drive(
        [command],
        config,
        environment=local_ray.driver_environment(state),
        log_path=logs_folder() / "driver.log",
        say=say,
    )


def _check_port(config: ShoalConfig) -> None:
    try:
        check_port_is_free(config.http.host, config.http.port)
    except ValueError as error:
        raise LaunchError(f"{error}; choose another one with SHOAL_PORT") from error


def _say_nothing(_: str) -> None:
    return


@contextmanager
def _stopping_on_failure(local_ray: LocalRay) -> Iterator[None]:
    """Leave nothing running when the block fails or is interrupted."""
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except BaseException:
        _stop(local_ray)
        raise
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextmanager
def _only_one_launcher(home: Path) -> Iterator[None]:
    """Hold the lock of this SHOAL_HOME.

    Raises:
        LaunchError: another `shoal up` or `shoal down` holds it.
    """
    descriptor = os.open(home / "launch.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LaunchError(f"another `shoal up` or `shoal down` is at work on {home}") from error
        yield
    finally:
        os.close(descriptor)
