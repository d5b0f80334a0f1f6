"""One Serve replica of a model: an engine, and the door through which the ingresses reach it.

Serve places, checks, drains and replaces it; tokens never pass through Serve.
"""

import gc
import logging
import os
import shutil
import tempfile
import time
from pathlib import Path

import msgspec
import psutil
import ray
from ray import serve

from cluster.adapter_catalog import AdapterCatalog
from cluster.config import LogSettings, ModelConfig, shoal_home
from cluster.errors import EngineGoneError
from cluster.model_source import resolve_model_source
from cluster.types import Request, SamplingParams
from deployments.channel_server import ChannelServer
from deployments.channel_wire import ReplicaStats
from deployments.cluster_secret import load_cluster_secret
from deployments.prefill_speed import PrefillSpeed
from deployments.process_logs import write_to_serve_log
from deployments.rank_actors import ActorRanks
from deployments.replica_endpoint import ReplicaEndpoint, ReplicaFacts
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError
from models.engine.async_engine import AsyncEngine
from models.engine.build import build_engine
from models.engine.engine import Engine
from models.parallel.rank_link import RankError, RankStarter
from models.passing_thread import run_in_passing

logger = logging.getLogger(__name__)


class ModelReplica:
    """The Serve deployment class; `app.build_application` sets its options."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self, config: ModelConfig, *, version: str, log_settings: LogSettings
    ) -> None:
        """Load the checkpoint, start the engine, open the channel.

        Raises:
            StartupError: in one readable message, what is wrong with the checkpoint or its limits.
        """
        constructed_s = time.perf_counter()
        start_seconds = {"process": time.time() - psutil.Process().create_time()}
        write_to_serve_log(log_settings)
        node_ip: str = ray.util.get_node_ip_address()
        keep_replica_server_off_other_interfaces(node_ip)
        try:
            secret = load_cluster_secret(shoal_home())
            ranks = _ranks(config, host=node_ip, secret=secret, log_settings=log_settings)
            engine = await run_in_passing("loading", _load_engine, config, ranks)
        except (ValueError, RankError) as error:
            raise StartupError(f"{config.name}: {error}") from error
        self._engine = AsyncEngine(
            engine,
            max_num_queued_requests=config.engine.max_num_queued_requests,
            max_num_queued_tokens=config.engine.max_num_queued_tokens,
        )
        self._engine.start()
        built_s = time.perf_counter()
        await _warm_up(self._engine)
        start_seconds |= engine.start_seconds
        start_seconds["other"] = built_s - constructed_s - sum(engine.start_seconds.values())
        start_seconds["first_token"] = time.perf_counter() - built_s
        self._prefill_speed = PrefillSpeed()
        self._channel = ChannelServer(self._engine, secret=secret, read_stats=self._read_stats)
        # A short path: the name of a Unix socket has at most 107 bytes.
        run_folder = os.environ.get("SHOAL_RUN_FOLDER")  # set where `shoal up` runs the cluster
        self._socket_folder = Path(tempfile.mkdtemp(prefix="shoal-", dir=run_folder))
        unix_path = self._socket_folder / "channel"
        port = await self._channel.start(unix_path=unix_path, tcp_host=node_ip)
        self._endpoint = ReplicaEndpoint(
            replica_id=serve.get_replica_context().replica_id.unique_id,
            node_id=ray.get_runtime_context().get_node_id(),
            unix_path=str(unix_path),
            tcp_host=node_ip,
            tcp_port=port,
            facts=_facts(config, engine, version, start_seconds),
        )
        # What is loaded stays: collections need not walk through it while tokens wait.
        gc.collect()
        gc.freeze()
        logger.info("%s", self._endpoint.facts.summary)
        parts = ", ".join(f"{name} {seconds:.2f} s" for name, seconds in start_seconds.items())
        logger.info("started in %.2f s: %s", sum(start_seconds.values()), parts)

    # Called by Serve.

    def record_replica_metadata(self) -> dict[str, object]:
        """Where ingresses find this replica: a `ReplicaEndpoint` in plain types."""
        metadata: dict[str, object] = msgspec.to_builtins(self._endpoint)
        return metadata

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that Serve cannot see, because streams do not pass through it: what
        `work_policy` decides by."""
        stats = self._read_stats()
        return {
            "requests_total": float(self._channel.requests_total),
            "num_requests_running": float(stats.num_requests_running),
            "num_requests_waiting": float(stats.num_requests_waiting),
            "num_waiting_prefill_tokens": float(stats.num_waiting_prefill_tokens),
            "num_free_blocks": float(stats.num_free_blocks),
            "num_blocks": float(stats.num_blocks),
            "prefill_tokens_per_s": self._prefill_speed.update(stats, time.monotonic()),
        }

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: the engine's thread has ended; Serve replaces the replica.
        """
        self._engine.check_health()

    async def __del__(self) -> None:
        """Serve awaits this before it kills the process: finish the running streams, then stop."""
        if not hasattr(self, "_socket_folder"):
            return  # the constructor failed
        await self._channel.drain()
        await self._engine.stop()
        await self._channel.stop()
        shutil.rmtree(self._socket_folder, ignore_errors=True)

    # Called through handles.

    def facts(self) -> dict[str, object]:
        """A `ReplicaFacts` in plain types, for `shoal up`."""
        facts: dict[str, object] = msgspec.to_builtins(self._endpoint.facts)
        return facts

    def stats(self) -> dict[str, float]:
        """The engine's load in plain types, for `shoal status`."""
        stats = self._read_stats()
        values: dict[str, float] = msgspec.structs.asdict(stats)
        del values["loaded_adapters"]
        return {**values, "kv_cache_usage": stats.kv_cache_usage}

    def _read_stats(self) -> ReplicaStats:
        stats = self._engine.stats()
        return ReplicaStats(
            **{name: getattr(stats, name) for name in ReplicaStats.__struct_fields__}
        )


def _ranks(
    config: ModelConfig, *, host: str, secret: bytes, log_settings: LogSettings
) -> RankStarter | None:
    """Where the ranks above 0 come from; None without any."""
    if config.tensor_parallel_size == 1:
        return None
    group = ray.util.get_current_placement_group()
    assert group is not None, "`app` asks for one"
    return ActorRanks(group, config, host=host, secret=secret, log_settings=log_settings)


def _load_engine(config: ModelConfig, ranks: RankStarter | None) -> Engine:
    """Blocks while the checkpoint is read."""
    return build_engine(
        config,
        resolve_model_source(config.source),
        ranks=ranks,
        find_adapter=AdapterCatalog(config).find,
    )


async def _warm_up(engine: AsyncEngine) -> None:
    """One token, so that nobody's first one waits for what happens once.

    Raises:
        RuntimeError: the engine cannot compute it.
    """
    request = Request(
        request_id="warm-up",
        prompt_token_ids=[0],
        sampling_params=SamplingParams(temperature=0.0, max_tokens=1, ignore_eos=True),
    )
    try:
        async for _ in engine.generate(request):
            pass
    except EngineGoneError:
        engine.check_health()  # says more
        raise


def _facts(
    config: ModelConfig, engine: Engine, version: str, start_seconds: dict[str, float]
) -> ReplicaFacts:
    stats = engine.stats()
    return ReplicaFacts(
        model_name=config.name,
        max_model_len=engine.max_model_len,
        vocab_size=engine.vocab_size,
        num_blocks=stats.num_blocks,
        summary=engine.describe(),
        source=config.source,
        version=version,
        start_seconds=start_seconds,
    )
