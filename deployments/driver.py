"""Talks to a running cluster: `python -m deployments.driver deploy [TIMEOUT_S]|status`.

`launch` runs it in a process of its own, because Ray reads its environment when it is imported and
a driver holds on to one cluster. The configuration comes on standard input; answers leave as one
JSON object per line on standard output.
"""

import math
import os
import sys
import time
from typing import Any

import msgspec
import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.schema import (
    ApplicationStatusOverview,
    DeploymentStatusOverview,
    LoggingConfig,
)

from cluster.audit import Act, audited
from cluster.config import ModelConfig, ShoalConfig, shoal_home
from deployments.app import build_application, ingress_order
from deployments.cluster_secret import load_cluster_secret
from deployments.cluster_view import cluster_view
from deployments.decision_board import read_decision
from deployments.deployment_names import (
    APPLICATION_NAME,
    INGRESS_NAME,
    RETRIEVAL_NAME,
    TASK_WORKER_NAME,
    deployment_name,
    embedder_deployment_name,
)
from deployments.launch_events import (
    Failed,
    NodeStatus,
    Phase,
    PoolStatus,
    Ready,
    Report,
    ServiceStatus,
    encode_event,
)
from deployments.process_logs import write_audit_log
from deployments.replica_endpoint import ReplicaFacts
from deployments.startup_error import find_startup_message

POLL_S = 0.25
SAMPLE_S = 1.0  # between the two looks that give tokens per second
CALL_TIMEOUT_S = 10.0
WAKE_TIMEOUT_S = 600.0  # large models load for minutes
MAX_PHASE_CHARS = 400


def deploy(config: ShoalConfig, *, timeout_s: float) -> None:
    """Deploy the application and wait until it runs, has failed, or the time is over."""
    write_audit_log(shoal_home() / "logs")
    with audited(Act.DEPLOYED, APPLICATION_NAME, actor=f"user {os.getuid()}") as act:
        outcome = _deploy(config, timeout_s=timeout_s)
        act.result = "ok" if isinstance(outcome, Ready) else "failed"
    _say(outcome)


def _deploy(config: ShoalConfig, *, timeout_s: float) -> Ready | Failed:
    _connect()
    logging_config = LoggingConfig(
        logs_dir=str(shoal_home() / "logs"), log_level=config.log_level, enable_access_log=False
    )
    _say(Phase(text="starting the Serve controller"))
    serve.start(proxy_location="Disabled", logging_config=logging_config)
    deadline_s = time.monotonic() + timeout_s
    leaving = _leaving_models(config)
    outcome = _run(config, leaving, logging_config, deadline_s=deadline_s)
    if leaving and isinstance(outcome, Ready):
        # The ingress has let go of them: what is under way ends in peace, nothing else comes.
        outcome = _run(config, [], logging_config, deadline_s=deadline_s)
    return outcome


def _run(
    config: ShoalConfig,
    leaving: list[ModelConfig],
    logging_config: LoggingConfig,
    *,
    deadline_s: float,
) -> Ready | Failed:
    target = serve.RunTarget(
        target=build_application(
            config,
            secret=load_cluster_secret(shoal_home()),
            with_room=_models_with_room(config),
            leaving=leaving,
        ),
        name=APPLICATION_NAME,
        route_prefix=None,  # the ingress listens by itself
        logging_config=logging_config,
    )
    serve.run_many([target], wait_for_applications_running=False)
    return _wait_for_outcome(config, deadline_s=deadline_s)


def _leaving_models(config: ShoalConfig) -> list[ModelConfig]:
    """Models that the ingresses serve and that are not in the configuration any more."""
    if serve.status().applications.get(APPLICATION_NAME) is None:
        return []
    handle = serve.get_deployment_handle(INGRESS_NAME, APPLICATION_NAME)
    try:
        told: list[list[str]] = handle.broadcast("models").results(timeout_s=CALL_TIMEOUT_S)
    except (TimeoutError, RayError, RayServeException):
        return []  # there is no ingress that could serve them
    texts = {text for models in told for text in models}
    models = {one.name: one for one in map(ModelConfig.model_validate_json, sorted(texts))}
    staying = {deployment_name(model.name) for model in config.models}
    return [model for model in models.values() if deployment_name(model.name) not in staying]


def report(config: ShoalConfig) -> None:
    """Say what runs and how busy it is."""
    _connect()
    application = serve.status().applications.get(APPLICATION_NAME)
    if application is None:
        _say(Failed(message="nothing is deployed on the running cluster"))
        return
    before = {model.name: _replica_stats(application, model.name) for model in config.models}
    started_s = time.monotonic()
    time.sleep(SAMPLE_S)
    pools = [
        _pool_status(application, model.name, before[model.name], started_s)
        for model in config.models
    ]
    services = [
        _service_status(application.deployments[deployed_as], name, deployed_as)
        for name, deployed_as in _services(config)
    ]
    status = str(application.status.value)
    _say(Report(status=status, pools=pools, services=services, nodes=_nodes(config)))


def main() -> None:
    """The entry point; see the module's docstring."""
    config = ShoalConfig.model_validate_json(sys.stdin.buffer.read())
    match sys.argv[1:]:
        case ["deploy"]:
            deploy(config, timeout_s=math.inf)
        case ["deploy", timeout_s]:
            deploy(config, timeout_s=float(timeout_s))
        case ["status"]:
            report(config)
        case _:
            raise SystemExit("usage: python -m deployments.driver deploy [TIMEOUT_S]|status")


def _connect() -> None:
    # The address comes from RAY_ADDRESS.
    ray.init(namespace="serve", log_to_driver=False, logging_level="ERROR")


def _models_with_room(config: ShoalConfig) -> frozenset[str]:
    """Those of which the cluster, as it is now, has room for one more replica beside the others'.

    Cautious: a rollout that waits for room that never comes would not end.
    """
    free = ray.available_resources()
    cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
    found = []
    for model in config.models:
        if model.num_cpus <= cpus and model.num_gpus <= gpus:
            found.append(model.name)
            cpus, gpus = cpus - model.num_cpus, gpus - model.num_gpus
    return frozenset(found)


def _wait_for_outcome(config: ShoalConfig, *, deadline_s: float) -> Ready | Failed:
    told: set[str] = set()
    while True:
        application = serve.status().applications[APPLICATION_NAME]
        failure = _failure(application)
        if failure is not None:
            return Failed(message=failure)
        for text in _phases(config, application):
            if text not in told:
                told.add(text)
                _say(Phase(text=text))
        if application.status.value == "RUNNING":
            outcome = _ingress_outcome(config)
            if outcome is not None:
                return outcome
        if time.monotonic() > deadline_s:
            return Failed(message=_what_is_missing(config, application))
        time.sleep(POLL_S)


def _ingress_outcome(config: ShoalConfig) -> Ready | Failed | None:
    """Whether the ingresses serve this configuration; None while they are about to."""
    handle = serve.get_deployment_handle(INGRESS_NAME, APPLICATION_NAME)
    wanted = ingress_order(config).digest
    try:
        served: list[tuple[str, str | None]] = handle.broadcast("serving").results(
            timeout_s=CALL_TIMEOUT_S
        )
    except (TimeoutError, RayError, RayServeException):
        return None  # one of them is being replaced
    problem = next((text for digest, text in served if digest != wanted and text), None)
    if problem is not None:
        return Failed(message=problem)
    if not served or any(digest != wanted for digest, _ in served):
        return None
    return Ready(facts=[_facts(model) for model in config.models])


def _failure(application: ApplicationStatusOverview) -> str | None:
    if application.status.value not in ("DEPLOY_FAILED", "UNHEALTHY"):
        return None
    texts = [deployment.message for deployment in application.deployments.values()]
    for text in [*texts, application.message]:
        message = find_startup_message(text)
        if message is not None:
            return message
    return next((text for text in texts if text), str(application.message))


def _phases(config: ShoalConfig, application: ApplicationStatusOverview) -> list[str]:
    phases = []
    for name, deployed_as in _deployments(config):
        deployment = application.deployments.get(deployed_as)
        if deployment is None:
            continue
        if deployment.status.value == "HEALTHY":
            phases.append(f"{name}: ready")
        else:
            states = _replica_states(deployment)
            num_changing = states.get("STARTING", 0) + states.get("UPDATING", 0)
            if num_changing:
                phases.append(f"{name}: loading ({num_changing} of {sum(states.values())})")
            if deployment.message:  # such as: no host has the resources yet
                phases.append(f"{name}: {_first_line(deployment.message)}")
    return phases


def _first_line(message: str) -> str:
    """Enough of a message of Serve's for one line."""
    return message.strip().split("\n", 1)[0][:MAX_PHASE_CHARS]


def _what_is_missing(config: ShoalConfig, application: ApplicationStatusOverview) -> str:
    lines = ["the time to become ready is over; it goes on in the background"]
    for name, deployed_as in _deployments(config):
        deployment = application.deployments.get(deployed_as)
        if deployment is not None and deployment.status.value != "HEALTHY":
            status = deployment.status.value.lower()
            lines.append(f"{name}: {status}. {deployment.message}".rstrip())
    return "\n".join(lines)


def _deployments(config: ShoalConfig) -> list[tuple[str, str]]:
    """All but the ingress: what a person calls them, what Serve does."""
    models = [(model.name, deployment_name(model.name)) for model in config.models]
    return [*models, *_services(config)]


def _services(config: ShoalConfig) -> list[tuple[str, str]]:
    """The deployments that serve no chat model: what a person calls them, what Serve does."""
    if not config.embedders:
        return []
    embedders = [(one.name, embedder_deployment_name(one.name)) for one in config.embedders]
    return [*embedders, ("retrieval", RETRIEVAL_NAME), ("task workers", TASK_WORKER_NAME)]


def _facts(model: ModelConfig) -> ReplicaFacts:
    handle = serve.get_deployment_handle(deployment_name(model.name), APPLICATION_NAME)
    # A model that may sleep may do so already; the call wakes it.
    timeout_s = WAKE_TIMEOUT_S if model.may_sleep else CALL_TIMEOUT_S
    return msgspec.convert(handle.facts.remote().result(timeout_s=timeout_s), type=ReplicaFacts)


def _replica_stats(
    application: ApplicationStatusOverview, model_name: str
) -> list[dict[str, float]]:
    """One entry per running replica; none when the pool has failed or sleeps."""
    if not _replica_states(application.deployments[deployment_name(model_name)]).get("RUNNING"):
        return []
    handle = serve.get_deployment_handle(deployment_name(model_name), APPLICATION_NAME)
    try:
        stats: list[dict[str, float]] = handle.broadcast("stats").results(timeout_s=CALL_TIMEOUT_S)
    except DeploymentUnavailableError:
        return []
    return stats


def _pool_status(
    application: ApplicationStatusOverview,
    model_name: str,
    before: list[dict[str, float]],
    started_s: float,
) -> PoolStatus:
    now = _replica_stats(application, model_name)
    elapsed_s = time.monotonic() - started_s
    deployment = application.deployments[deployment_name(model_name)]
    num_tokens = _total(now, "generation_tokens_total") - _total(before, "generation_tokens_total")
    return PoolStatus(
        model_name=model_name,
        status=str(deployment.status.value),
        message=find_startup_message(deployment.message) or deployment.message,
        replica_states=_replica_states(deployment),
        num_requests_running=int(_total(now, "num_requests_running")),
        num_requests_waiting=int(_total(now, "num_requests_waiting")),
        kv_cache_usage=max((replica["kv_cache_usage"] for replica in now), default=0.0),
        # A replica that was replaced meanwhile starts at zero again.
        tokens_per_s=max(num_tokens, 0.0) / elapsed_s,
        decision=_decision(deployment_name(model_name)),
    )


def _decision(deployed_as: str) -> str:
    """What the autoscaler decided last, and why."""
    posted = read_decision(deployed_as)
    return "" if posted is None else f"{posted.num_replicas} wanted: {posted.reason}"


def _nodes(config: ShoalConfig) -> list[NodeStatus]:
    return [
        NodeStatus(address=node.address, is_alive=node.is_alive, cpus=node.cpus, gpus=node.gpus)
        for node in cluster_view(config).read().nodes
    ]


def _service_status(
    deployment: DeploymentStatusOverview, name: str, deployed_as: str
) -> ServiceStatus:
    return ServiceStatus(
        name=name,
        status=str(deployment.status.value),
        message=find_startup_message(deployment.message) or deployment.message,
        replica_states=_replica_states(deployment),
        decision=_decision(deployed_as),
    )


def _replica_states(deployment: DeploymentStatusOverview) -> dict[str, int]:
    # The keys are an enum in Serve's annotations and plain strings in what it returns.
    return {
        getattr(state, "value", state): count for state, count in deployment.replica_states.items()
    }


def _total(stats: list[dict[str, float]], name: str) -> float:
    return sum(replica[name] for replica in stats)


def _say(event: Any) -> None:
    sys.stdout.write(encode_event(event) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
