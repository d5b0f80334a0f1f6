"""One Serve replica of an embedding model.

Calls come through Serve's handles (see `embedder_handle`); Serve places, checks and scales it.
"""

import logging
from collections.abc import Sequence

import ray
import transformers

from cluster.config import EmbedderConfig, LogSettings
from cluster.model_source import resolve_embedder_source
from cluster.retrieval import EmbedderFacts, Embeddings, InputKind
from deployments.embedder_handle import PassageLimits
from deployments.local_embedder import LocalEmbedder
from deployments.process_logs import write_to_serve_log
from deployments.serve_calls import returns_refusals
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError
from models.embedding.text_embedder import TextEmbedder
from models.passing_thread import run_in_passing

logger = logging.getLogger(__name__)


class EmbedderReplica:
    """The Serve deployment class; `autoscaling_policy.embedder_options` has its scaling."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self, config: EmbedderConfig, *, log_settings: LogSettings
    ) -> None:
        """Load the checkpoint and embed a word with it.

        Raises:
            StartupError: in one readable message, what is wrong with the checkpoint or its limits.
        """
        write_to_serve_log(log_settings)
        keep_replica_server_off_other_interfaces(ray.util.get_node_ip_address())
        transformers.logging.set_verbosity_error()  # it reports what `Encoder` checks
        transformers.logging.disable_progress_bar()
        try:
            self._text_embedder = await run_in_passing("loading", _load, config)
        except ValueError as error:
            raise StartupError(f"{config.name}: {error}") from error
        self._embedder = LocalEmbedder(config, self._text_embedder)
        self._embedder.start()
        logger.info("%s", self._text_embedder.describe())

    # Called by Serve.

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What `autoscaling_policy` decides by."""
        queue = self._embedder.queue
        return {
            "num_queued_tokens": float(queue.num_queued_tokens),
            "queued_s": queue.queued_s,
            "is_busy": float(queue.num_queued_tokens > 0),
        }

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing is computed any more; Serve replaces the replica.
        """
        self._embedder.check_health()

    async def __del__(self) -> None:
        """Serve awaits this before it kills the process: answer the calls that are here."""
        if hasattr(self, "_embedder"):
            await self._embedder.stop()

    # Called through handles.

    async def facts(self) -> EmbedderFacts:
        """See `Embedder`."""
        return await self._embedder.facts()

    @returns_refusals
    async def embed(
        self, inputs: Sequence[str] | Sequence[Sequence[int]], kind: InputKind
    ) -> Embeddings:
        """See `Embedder`. A cancelled call is forgotten."""
        return await self._embedder.embed(inputs, kind=kind)

    def passage_limits(self) -> PassageLimits:
        return PassageLimits(
            tokenizer_json=self._text_embedder.tokenizer.to_str(),
            max_tokens=self._text_embedder.max_passage_tokens,
        )

    def describe(self) -> str:
        """One line for `shoal up`."""
        return self._text_embedder.describe()

    def stats(self) -> dict[str, float]:
        """For `shoal status`."""
        return self.record_autoscaling_stats()


def _load(config: EmbedderConfig) -> TextEmbedder:
    """Blocks while the checkpoint is read."""
    embedder = TextEmbedder(config, resolve_embedder_source(config.source))
    embedder.embed_tokens(embedder.cut(["ready"]))  # what fails, fails now
    return embedder
