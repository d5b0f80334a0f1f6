"""The pools of all models, as a process that speaks text has them: connected, and with their texts'
tokens."""

import asyncio
from collections.abc import Mapping

import ray
from ray.serve.handle import DeploymentHandle

from cluster.config import ModelConfig, ShoalConfig
from cluster.model_source import resolve_text_source
from cluster.telemetry import Telemetry
from deployments.channel_pool import MOVE_WAIT_S, ChannelPool, HoldLimits
from deployments.ingress.served_model import ServedModel, load_served_model
from deployments.serve_private import ServeReplicaPicker
from deployments.startup_error import StartupError


class ModelPools:
    """One `ChannelPool` for each model of the configuration."""

    def __init__(
        self,
        config: ShoalConfig,
        handles: Mapping[str, DeploymentHandle],
        *,
        secret: bytes,
        versions: Mapping[str, str] | None = None,
        previous: "ModelPools | None" = None,
    ) -> None:
        """
        Args:
            handles: the replicas of each model, by its name.
            versions: which replicas of each model say what the model is like; None: any.
            previous: pools of another configuration; those of the same models are taken over, with
                their connections and streams.
        """
        self._config = config
        holds = {model.name: _hold_limits(model) for model in config.models}
        self._versions = versions or {}
        self._previous = {} if previous is None else previous._pools
        previous_config = None if previous is None else previous._config
        node_id = ray.get_runtime_context().get_node_id()
        self._pools: dict[str, ChannelPool] = {}
        for model in config.models:
            if previous_config is not None and _is_same_pool(model, config, previous_config):
                self._pools[model.name] = self._previous[model.name]
                continue
            picker = ServeReplicaPicker(
                handles[model.name], model_name=model.name, source=model.source
            )
            self._pools[model.name] = ChannelPool(
                picker,
                model_name=model.name,
                secret=secret,
                own_node_id=node_id,
                max_buffered_tokens=config.http.max_buffered_tokens,
                hold=holds[model.name],
            )

    async def start(self) -> dict[str, ServedModel]:
        """Wait for a replica of every model; the models by their names.

        Raises:
            StartupError: a checkpoint cannot be read; says why.
            ServiceUnavailableError: a model's replicas cannot be started.
        """
        served = await asyncio.gather(*(self._served(model) for model in self._config.models))
        for name, pool in self._pools.items():
            if self._previous.get(name) is not pool:
                pool.start()
        self._previous = {}
        return {model.name: model for model in served}

    def expect(self, config: ShoalConfig) -> None:
        """This configuration is about to follow, or is the present one after all: models that it
        does not have, or has otherwise, get no more replicas."""
        for model in self._config.models:
            following = next((one for one in config.models if one.name == model.name), None)
            self._pools[model.name].expect_successors(
                following is not None and following.source == model.source,
                is_removed=following is None,
            )

    def watch(self, telemetry: Telemetry) -> None:
        """Let the metrics tell how long replicas took to start."""
        for name, pool in self._pools.items():
            telemetry.watch_starts(name, pool.start_seconds)

    async def stop(self, *, successor: "ModelPools | None" = None) -> None:
        """Drop all connections, but for what the successor has taken over; running streams end."""
        kept = [] if successor is None else list(successor._pools.values())
        for pool in self._pools.values():
            if pool not in kept:
                await pool.stop()

    async def _served(self, config: ModelConfig) -> ServedModel:
        pool = self._pools[config.name]
        facts = await pool.facts(version=self._versions.get(config.name))
        try:
            return await asyncio.to_thread(
                load_served_model,
                config,
                resolve_text_source(config.source),
                pool,
                max_model_len=facts.max_model_len,
                vocab_size=facts.vocab_size,
            )
        except ValueError as error:
            raise StartupError(f"{config.name}: {error}") from error


def _hold_limits(model: ModelConfig) -> HoldLimits:
    scaling = model.autoscaling
    if not model.may_sleep:
        return HoldLimits()
    return HoldLimits(
        max_requests=scaling.max_held_requests,
        max_s=scaling.max_hold_s,
        move_s=max(MOVE_WAIT_S, scaling.max_hold_s),
        may_sleep=True,
        start_s=scaling.expected_start_s,
    )


def _is_same_pool(model: ModelConfig, config: ShoalConfig, previous: ShoalConfig) -> bool:
    """Whether streams that began before may go on with this model's replicas."""
    before = next((one for one in previous.models if one.name == model.name), None)
    return (
        before is not None
        and before.source == model.source
        and previous.http.max_buffered_tokens == config.http.max_buffered_tokens
        and _hold_limits(before) == _hold_limits(model)
    )
