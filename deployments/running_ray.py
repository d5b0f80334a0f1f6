"""Deploys the application on a Ray cluster that runs already: `shoal deploy`, run on its head.

Ray was started by `ray up`, by KubeRay or by hand, and stays whose it is: nothing of it is stopped
here. Where no Redis is configured, one of ours is started on this host, with a password, on the
address by which the other hosts know the head. Neither torch nor ray is imported in this process.
"""

import hashlib
import hmac
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from cluster.config import ShoalConfig, shoal_home
from cluster.secret_keys import ensure_keys_file
from deployments import embedded_redis
from deployments.cluster_secret import (
    SECRET_FILE_NAME,
    create_private_text,
    load_cluster_secret,
    new_secret,
)
from deployments.driver_process import drive
from deployments.embedded_redis import Door, EmbeddedRedisError
from deployments.launch_events import Failed, Ready, Report
from deployments.local_ray import SERVE_ENVIRONMENT, LaunchError, private_run_folder
from deployments.readiness import (
    check_redis,
    local_url,
    needs_own_redis,
    wait_until_ready,
    with_redis_url,
)
from deployments.replica_endpoint import ReplicaFacts

AUTO = "auto"
REDIS_PORT = 6380  # Ray's own is 6379
# Ray reads these when it starts a connection; without them it knows no token.
AUTH_MODE_VARIABLE = "RAY_AUTH_MODE"
_ADDRESS_FILE = "ray_address"  # of what was deployed last from this SHOAL_HOME

Say = Callable[[str], None]


def deploy(
    config: ShoalConfig, *, address: str, timeout_s: float, say: Say
) -> tuple[ReplicaFacts, ...]:
    """Bring the Ray cluster at `address` ("auto": the one of this host) to a configuration.

    Returns when the API answers. Hosts that Ray's autoscaler starts for it are waited for. Deployed
    again, only what changed is replaced. `config` carries every API key, as digests.

    Raises:
        LaunchError: it did not become ready; the message is meant for a person. What was deployed
            stays as Serve has it.
    """
    gcs_address = find_ray(address, os.environ)
    head_ip = gcs_address.rpartition(":")[0]
    check_is_of_this_host(head_ip)
    if os.environ.get(AUTH_MODE_VARIABLE) != "token":
        say(
            f"WARNING: {AUTH_MODE_VARIABLE} is not 'token': whoever reaches a port of this Ray"
            " cluster runs programs on its hosts"
        )
    home = shoal_home()
    (home / "logs").mkdir(mode=0o700, parents=True, exist_ok=True)
    create_private_text(home / SECRET_FILE_NAME, new_secret())
    ensure_keys_file(home)
    complete = _with_redis(config, home, head_ip, say)
    check_redis(complete, say)
    event = drive(
        ["deploy", str(timeout_s)],
        complete,
        environment=driver_environment(os.environ, gcs_address),
        log_path=home / "logs" / "driver.log",
        say=say,
    )
    if not isinstance(event, Ready):
        raise LaunchError(event.message if isinstance(event, Failed) else "no outcome")
    wait_until_ready(local_url(config.http.host, config.http.port))
    (home / _ADDRESS_FILE).write_text(gcs_address + "\n", encoding="ascii")
    return tuple(event.facts)


def report(config: ShoalConfig) -> Report | None:
    """How the application is that was deployed from this SHOAL_HOME; None where its Ray is gone.

    Raises:
        LaunchError: Ray runs and does not say.
    """
    home = shoal_home()
    try:
        gcs_address = (home / _ADDRESS_FILE).read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    if not _listens(gcs_address):
        return None
    event = drive(
        ["status"],
        config,
        environment=driver_environment(os.environ, gcs_address),
        log_path=home / "logs" / "driver.log",
        say=lambda _: None,
    )
    if not isinstance(event, Report):
        message = event.message if isinstance(event, Failed) else "no report"
        raise LaunchError(f"Ray runs at {gcs_address} but does not say how it is: {message}")
    return event


def find_ray(address: str, environment: Mapping[str, str]) -> str:
    """The `host:port` of Ray's control store; "auto" is RAY_ADDRESS, else what runs on this host.

    Raises:
        LaunchError: there is none, or it is not `host:port`.
    """
    if address == AUTO:
        address = environment.get("RAY_ADDRESS", AUTO)
    if address == AUTO:
        noted = Path(environment.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        try:
            address = noted.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise LaunchError(
                f"no Ray runs on this host ({noted}: {error.strerror}); start it with "
                "`ray up` or `ray start --head`, or name it with --address"
            ) from error
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise LaunchError(f"address {address!r}: must be 'auto' or like 10.0.0.1:6379")
    return address


def driver_environment(environment: Mapping[str, str], gcs_address: str) -> dict[str, str]:
    """The caller's, which has the token, without what Serve's replicas are told: on the head every
    shell has that too, and a driver outside of an event loop cannot call a replica with it."""
    kept = {name: value for name, value in environment.items() if name not in SERVE_ENVIRONMENT}
    return {**kept, "RAY_ADDRESS": gcs_address}


def check_is_of_this_host(head_ip: str) -> None:
    """
    Raises:
        LaunchError: the head is another host.
    """
    family = socket.AF_INET6 if ":" in head_ip else socket.AF_INET
    with socket.socket(family) as probe:
        try:
            probe.bind((head_ip.strip("[]"), 0))
        except OSError as error:
            raise LaunchError(
                f"the head of the Ray cluster is {head_ip}, which is not this host; run "
                "`shoal deploy` there"
            ) from error


def _listens(gcs_address: str) -> bool:
    host, _, port = gcs_address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
    except OSError:
        return False
    return True


def redis_password(cluster_secret: bytes) -> str:
    """Of the Redis server of ours; derived, so that it need not be kept anywhere."""
    return hmac.new(cluster_secret, b"shoal redis password", hashlib.sha256).hexdigest()


def _with_redis(config: ShoalConfig, home: Path, head_ip: str, say: Say) -> ShoalConfig:
    if not needs_own_redis(config):
        return config
    say(f"starting Redis on {head_ip}")
    try:
        password = redis_password(load_cluster_secret(home))
        door = Door(host=head_ip, port=REDIS_PORT, password=password)
        url = embedded_redis.start(
            home, private_run_folder(home), environment=os.environ, door=door
        )
    except (EmbeddedRedisError, ValueError) as error:
        raise LaunchError(str(error)) from error
    return with_redis_url(config, url)
