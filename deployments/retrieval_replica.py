"""One Serve replica of retrieval: any of them can answer for any bucket.

Calls come through Serve's handles (see `retriever_handle`); Serve places, checks and scales it.
"""

import logging
import os
from collections.abc import Mapping, Sequence

import msgspec
import ray
import torch
from ray.serve.handle import DeploymentHandle

from cluster.config import ConfigError, LogSettings, RetrievalConfig, ShoalConfig
from cluster.model_source import resolve_embedder_source
from cluster.redis_client import connect
from cluster.retrieval import SearchMode
from cluster.types import BucketRef, FoundChunk
from deployments.embedder_handle import ServeEmbedder
from deployments.process_logs import write_to_serve_log
from deployments.retrieval_service import RetrievalService
from deployments.serve_calls import returns_refusals
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError
from models.passing_thread import run_in_passing
from models.retrieval.reranker import Reranker, RerankerError

logger = logging.getLogger(__name__)

_MAX_INDEX_THREADS = 32


class RetrievalReplica:
    """The Serve deployment class; `app.build_application` sets its options."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self,
        config: ShoalConfig,
        embedders: Mapping[str, DeploymentHandle],
        *,
        log_settings: LogSettings,
    ) -> None:
        """Ready at once: buckets are loaded when they are asked for, and Redis may come later.

        Raises:
            StartupError: in one readable message, what is wrong with the re-ranker or Redis' URL.
        """
        write_to_serve_log(log_settings)
        keep_replica_server_off_other_interfaces(ray.util.get_node_ip_address())
        retrieval = config.retrieval
        torch.set_num_threads(max(1, round(retrieval.num_cpus)))
        try:
            reranker = await run_in_passing("loading", _load_reranker, retrieval)
            self._redis = connect(config.redis)
        except (ConfigError, RerankerError) as error:
            raise StartupError(str(error)) from error
        self._service = RetrievalService(
            retrieval,
            self._redis,
            {
                name: ServeEmbedder(handle, model_name=name, timeout_s=retrieval.search_timeout_s)
                for name, handle in embedders.items()
            },
            num_threads=_num_index_threads(),
            reranker=reranker,
        )
        self._service.start()
        self._summary = _describe(retrieval)
        logger.info("%s", self._summary)

    # Called by Serve.

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve counts the searches as well; this is for policies that look at both."""
        stats = self._service.stats()
        return {
            "num_searches_running": float(stats.num_searches_running),
            "index_bytes": float(stats.num_bytes),
        }

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: commits are not followed any more; Serve replaces the replica.
        """
        self._service.check_health()

    async def __del__(self) -> None:
        """Serve awaits this before it kills the process, when no search is under way any more."""
        if hasattr(self, "_service"):
            await self._service.stop()
            await self._redis.close()

    # Called through handles.

    @returns_refusals
    async def search(
        self,
        buckets: Sequence[BucketRef],
        queries: Sequence[str],
        max_results: int,
        mode: SearchMode,
    ) -> list[FoundChunk]:
        """See `Retriever`."""
        return await self._service.search(buckets, queries, max_results=max_results, mode=mode)

    def describe(self) -> str:
        """One line for `shoal up`."""
        return self._summary

    def stats(self) -> dict[str, object]:
        """A `RetrievalStats` in plain types, for `shoal status`."""
        stats: dict[str, object] = msgspec.to_builtins(self._service.stats())
        return stats


def _load_reranker(config: RetrievalConfig) -> Reranker | None:
    """Blocks while the checkpoint is read."""
    if config.reranker is None:
        return None
    reranker = Reranker(resolve_embedder_source(config.reranker))
    reranker.score("ready", ["ready"])  # what fails, fails now
    return reranker


def _num_index_threads() -> int:
    """All cores: a bucket is loaded in a burst, and its graph is built by threads that let others
    go first.
    """
    return min(_MAX_INDEX_THREADS, len(os.sched_getaffinity(0)))


def _describe(config: RetrievalConfig) -> str:
    ranking = f"re-ranked by {config.reranker}" if config.reranker else "not re-ranked"
    return (
        f"exact search up to {config.max_exact_chunks:,} chunks per bucket, approximate above, "
        f"{config.index_memory_bytes / 2**20:,.0f} MiB for indexes, {ranking}"
    )
