"""A Ray cluster of our own on this machine: its start, its processes, its end.

Everything of it lives under SHOAL_HOME and listens on loopback. Its processes carry a mark in their
environment (SHOAL_CLUSTER_ID) and share a session of the operating system; that alone decides what
is stopped, and other Ray clusters of the host are never touched. Ray itself is not imported here;
`driver` talks to the running cluster.
"""

import hashlib
import math
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import msgspec
import psutil

from cluster.config import ShoalConfig
from cluster.secret_keys import ensure_keys_file
from deployments.cluster_secret import SECRET_FILE_NAME, create_private_text, new_secret

CLUSTER_ID_VARIABLE = "SHOAL_CLUSTER_ID"
TASK_WORKER_CPUS = 0.1  # it waits for others mostly; its parsing processes are not Ray's
OBJECT_STORE_BYTES = 128 * 2**20  # control messages only; Ray's minimum is 75 MiB
START_TIMEOUT_S = 120.0
TERMINATE_WAIT_S = 3.0
KILL_WAIT_S = 10.0
_MAX_FOLDER_BYTES = 40  # Ray's socket names add up to 66 bytes; Unix allows 107
_OWNER_ONLY = 0o700
_CLIENT_SERVER = "ray.util.client.server"
_ESSENTIAL = ("gcs_server", "raylet")
_PACKAGE_ROOT = Path(__file__).resolve().parent.parent

# For every process that Ray starts; Serve reads them at import.
SERVE_ENVIRONMENT = {
    # The user's code in the replica's own loop: no hop between threads for a pick.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",
}


class LaunchError(Exception):
    """The cluster cannot be started or stopped; the message is meant for a person."""


class ClusterState(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down about a running cluster, in `<home>/cluster.json`."""

    cluster_id: str
    ray_address: str
    run_folder: str
    session_id: int = 0  # of the operating system, which all its processes share
    num_cpus: int  # what Ray was told; a configuration that needs more needs a restart
    http_host: str
    http_port: int
    deployed: ShoalConfig | None = None  # what was deployed successfully


class LocalRay:
    """The cluster that belongs to one SHOAL_HOME."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._state_path = home / "cluster.json"

    def state(self) -> ClusterState | None:
        """What is written down; None where nothing is.

        Raises:
            LaunchError: the file cannot be understood.
        """
        try:
            return msgspec.json.decode(
                self._state_path.read_bytes(), type=ClusterState, dec_hook=_decode_config
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise LaunchError(f"{self._state_path}: cannot be read: {error}") from error

    def write_state(self, state: ClusterState) -> None:
        partial = self._state_path.with_suffix(".partial")
        partial.unlink(missing_ok=True)
        partial.touch(mode=0o600)  # there may be passwords in it
        partial.write_bytes(msgspec.json.encode(state, enc_hook=_encode_config))
        partial.replace(self._state_path)

    def is_running(self, state: ClusterState) -> bool:
        """Ray's own processes are alive."""
        names = {process.info["name"] for process in processes_of(state)}
        return all(essential in names for essential in _ESSENTIAL)

    def num_processes(self, state: ClusterState) -> int:
        return len(processes_of(state))

    def start(self, config: ShoalConfig) -> ClusterState:
        """Start Ray and write the state down. On failure nothing is left running.

        Raises:
            LaunchError: Ray did not start.
        """
        self._home.mkdir(mode=_OWNER_ONLY, parents=True, exist_ok=True)
        create_private_text(self._home / SECRET_FILE_NAME, new_secret())
        ensure_keys_file(self._home)
        token_path = self._home / "ray_token"
        create_private_text(token_path, new_secret())
        self._put_old_logs_aside()
        run_folder = fresh_run_folder(self._home)
        state = ClusterState(
            cluster_id=uuid.uuid4().hex,
            ray_address=f"127.0.0.1:{_free_port()}",
            run_folder=str(run_folder),
            num_cpus=needed_cpus(config),
            http_host=config.http.host,
            http_port=config.http.port,
        )
        self.write_state(state)  # first: whatever happens, `stop` knows what to look for
        try:
            return self._start_head(state)
        except BaseException:
            self.stop()
            raise

    def driver_environment(self, state: ClusterState) -> dict[str, str]:
        """For a process that connects to the cluster."""
        return {**self._environment(state), "RAY_ADDRESS": state.ray_address}

    def stop(self) -> int:
        """Stop every process of the cluster; return how many there were.

        Raises:
            LaunchError: some process survived.
        """
        state = self.state()
        if state is None:
            return 0
        num_stopped = _end(state)
        shutil.rmtree(state.run_folder, ignore_errors=True)
        self._state_path.unlink(missing_ok=True)
        return num_stopped

    def inherited_environment(self) -> dict[str, str]:
        """What the caller's environment has for processes of the cluster."""
        own = ("SHOAL_API_KEY", "SHOAL_PORT", "SHOAL_REDIS_URL")  # the configuration has them
        return {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("RAY_") and name not in own
        }

    def _environment(self, state: ClusterState) -> dict[str, str]:
        """Isolated from the Ray settings of whoever calls."""
        inherited = self.inherited_environment()
        python_path = [str(_PACKAGE_ROOT), *filter(None, [inherited.get("PYTHONPATH")])]
        return {
            **inherited,
            CLUSTER_ID_VARIABLE: state.cluster_id,
            "SHOAL_HOME": str(self._home),
            "SHOAL_RUN_FOLDER": state.run_folder,
            "PYTHONPATH": os.pathsep.join(python_path),
            # Ray would set it to the replica's reserved CPUs, which are places and not cores.
            "OMP_NUM_THREADS": inherited.get("OMP_NUM_THREADS", str(os.cpu_count() or 1)),
            # Ray's switch for single-machine clusters: the node's address is 127.0.0.1, and every
            # server of Ray binds to it instead of all interfaces.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self._home / "ray_token"),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def _start_head(self, state: ClusterState) -> ClusterState:
        port = state.ray_address.rpartition(":")[2]
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head"),
            # A folder below the private one, because Ray opens its own to everybody.
            *("--port", port, "--temp-dir", str(Path(state.run_folder) / "r")),
            *("--num-cpus", str(state.num_cpus)),
            *("--object-store-memory", str(OBJECT_STORE_BYTES)),
            *("--ray-client-server-port", str(_free_port())),
            # Ports that two clusters of one host would fight for are left to chance.
            *("--min-worker-port", "0", "--max-worker-port", "0"),
            *("--dashboard-agent-listen-port", "0", "--metrics-export-port", "0"),
            *("--include-dashboard", "false", "--include-log-monitor", "false"),
            *("--no-monitor", "--disable-usage-stats"),
        ]
        starter = subprocess.Popen(
            command,
            env={**self._environment(state), **SERVE_ENVIRONMENT},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # its number is the starter's process id
        )
        state = msgspec.structs.replace(state, session_id=starter.pid)
        self.write_state(state)
        try:
            output, _ = starter.communicate(timeout=START_TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise LaunchError(f"Ray did not start within {START_TIMEOUT_S:g} s") from error
        if starter.returncode != 0:
            lines = output.strip().splitlines()
            raise LaunchError("Ray did not start: " + (lines[-1] if lines else "no output"))
        _end_client_server(state)
        return state

    def _put_old_logs_aside(self) -> None:
        logs, previous = self._home / "logs", self._home / "logs.previous"
        if logs.exists():
            shutil.rmtree(previous, ignore_errors=True)
            logs.rename(previous)
        logs.mkdir(mode=_OWNER_ONLY)


def needed_cpus(config: ShoalConfig) -> int:
    """CPUs for Ray to hand out: the machine's, or as many as the configuration reserves.

    Ray's CPUs are places, not cores: a small machine may run more replicas than it has cores.
    """
    reserved = sum(model.most_replicas * model.num_cpus for model in config.models)
    if config.embedders:
        searching = config.retrieval.max_replicas * config.retrieval.num_cpus
        embedding = sum(one.max_replicas * one.num_cpus for one in config.embedders)
        reserved += searching + embedding + config.retrieval.most_task_workers * TASK_WORKER_CPUS
    return max(os.cpu_count() or 1, math.ceil(reserved) + 1)  # one for the ingresses


def processes_of(state: ClusterState) -> list[psutil.Process]:
    """The living processes of the cluster, with `info["name"]`."""
    found = []
    for process in psutil.process_iter(["name"]):
        try:
            if _belongs_to(process, state) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError, PermissionError):
            continue
    return found


def _belongs_to(process: psutil.Process, state: ClusterState) -> bool:
    if process.environ().get(CLUSTER_ID_VARIABLE) == state.cluster_id:
        return True
    # Ray writes titles ("ray::…") into its processes, some of them over the environment.
    title = next(iter(process.cmdline()), "")
    return title.startswith("ray::") and os.getsid(process.pid) == state.session_id


def _end(state: ClusterState) -> int:
    processes = processes_of(state)
    num_found = len(processes)
    for process in processes:
        _signal(process, is_last_word=False)
    _wait_until_gone(state, wait_s=TERMINATE_WAIT_S)
    deadline_s = time.monotonic() + KILL_WAIT_S
    while processes := processes_of(state):
        # Again and again: a process may have started another one meanwhile.
        for process in processes:
            _signal(process, is_last_word=True)
        if time.monotonic() > deadline_s:
            pids = ", ".join(str(process.pid) for process in processes)
            raise LaunchError(f"these processes of the cluster do not end: {pids}")
        _wait_until_gone(state, wait_s=0.5)
    return num_found


def _end_client_server(state: ClusterState) -> None:
    """Ray's server for remote drivers comes with every head; nothing here needs it."""
    for process in processes_of(state):
        if _CLIENT_SERVER in process.cmdline():
            process.kill()


def _signal(process: psutil.Process, *, is_last_word: bool) -> None:
    try:
        if is_last_word:
            process.kill()
        else:
            process.terminate()
    except psutil.NoSuchProcess:
        pass


def _wait_until_gone(state: ClusterState, *, wait_s: float) -> None:
    deadline_s = time.monotonic() + wait_s
    while processes_of(state) and time.monotonic() < deadline_s:
        time.sleep(0.05)


def fresh_run_folder(home: Path) -> Path:
    """An empty folder for sockets and Ray's session; see `private_run_folder`."""
    folder = _run_folder(home)
    if _is_ours(folder):
        shutil.rmtree(folder)
    return private_run_folder(home)


def private_run_folder(home: Path) -> Path:
    """A folder that nobody else can enter: `<home>/run`, or one with a short path elsewhere.

    Raises:
        LaunchError: it belongs to somebody else, or others can enter it.
    """
    folder = _run_folder(home)
    if not _is_ours(folder):
        folder.mkdir(mode=_OWNER_ONLY)
    if folder.is_symlink() or stat.S_IMODE(folder.lstat().st_mode) & 0o077:
        raise LaunchError(f"{folder} can be entered by others")
    return folder


def _run_folder(home: Path) -> Path:
    folder = home / "run"
    if len(os.fsencode(folder)) > _MAX_FOLDER_BYTES:
        digest = hashlib.sha256(os.fsencode(home.resolve())).hexdigest()[:12]
        folder = Path(tempfile.gettempdir()) / f"shoal-{os.getuid()}-{digest}"
    return folder


def _is_ours(folder: Path) -> bool:
    """False: it is not there."""
    if not (folder.is_symlink() or folder.exists()):
        return False
    owner = folder.lstat().st_uid
    if owner != os.getuid():
        raise LaunchError(f"{folder} belongs to another user (uid {owner})")
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _encode_config(value: object) -> object:
    assert isinstance(value, ShoalConfig)
    return value.model_dump(mode="json")


def _decode_config(kind: type, value: object) -> object:
    assert kind is ShoalConfig
    return ShoalConfig.model_validate(value)
