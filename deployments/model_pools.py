"""The pools of all models, as a process that speaks text has them: connected, and with their texts'
tokens."""

import asyncio
from collections.abc import Mapping

import ray
from ray.serve.handle import DeploymentHandle

from cluster.config import ModelConfig, ShoalConfig
from cluster.model_source import resolve_text_source
from deployments.channel_pool import MOVE_WAIT_S, ChannelPool, HoldLimits
from deployments.ingress.served_model import ServedModel, load_served_model
from deployments.serve_private import ServeReplicaPicker
from deployments.startup_error import StartupError


class ModelPools:
    """One `ChannelPool` for each model of the configuration."""

    def __init__(
        self, config: ShoalConfig, handles: Mapping[str, DeploymentHandle], *, secret: bytes
    ) -> None:
        """`handles`: the replicas of each model, by its name."""
        self._config = config
        holds = {model.name: _hold_limits(model) for model in config.models}
        node_id = ray.get_runtime_context().get_node_id()
        self._pools = {
            name: ChannelPool(
                ServeReplicaPicker(handle, model_name=name),
                model_name=name,
                secret=secret,
                own_node_id=node_id,
                max_buffered_tokens=config.http.max_buffered_tokens,
                hold=holds[name],
            )
            for name, handle in handles.items()
        }

    async def start(self) -> dict[str, ServedModel]:
        """Wait for a replica of every model; the models by their names.

        Raises:
            StartupError: a checkpoint cannot be read; says why.
        """
        served = await asyncio.gather(*(self._served(model) for model in self._config.models))
        for pool in self._pools.values():
            pool.start()
        return {model.name: model for model in served}

    async def stop(self) -> None:
        """Drop all connections; running streams end."""
        for pool in self._pools.values():
            await pool.stop()

    async def _served(self, config: ModelConfig) -> ServedModel:
        pool = self._pools[config.name]
        facts = await pool.facts()
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
