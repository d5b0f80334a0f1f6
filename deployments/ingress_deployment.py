"""One Serve replica of the ingress: its listening socket, and what is served there at the moment.

Serve places, checks, drains and replaces it; HTTP does not pass through Serve. A changed
configuration is taken over without a restart, so that no connection notices.
"""

import asyncio
import logging
from collections.abc import Mapping

import ray
from ray.serve.handle import DeploymentHandle

from cluster.config import HTTPConfig, LogSettings, shoal_home
from cluster.errors import ServiceUnavailableError
from cluster.telemetry import Telemetry
from deployments.app_switch import AppSwitch
from deployments.cluster_secret import load_cluster_secret
from deployments.cpu_share import CPUShare
from deployments.http_listener import HTTPListener, bind_shared
from deployments.ingress_front import IngressFront
from deployments.process_logs import write_to_serve_log
from deployments.sealed_config import IngressOrder, unseal
from deployments.serve_private import keep_replica_server_off_other_interfaces
from deployments.startup_error import StartupError

RETRY_S = 10.0  # before a configuration that cannot be served yet is tried again

logger = logging.getLogger(__name__)


class Ingress:
    """The Serve deployment class; `app.build_application` sets its options."""

    async def __init__(  # type: ignore[misc]  # Serve awaits the constructor
        self,
        http: HTTPConfig,
        deployed_with_it: Mapping[str, DeploymentHandle],
        *,
        log_settings: LogSettings,
    ) -> None:
        """Take the port; `reconfigure`, which Serve calls next, says what is served there.

        Args:
            deployed_with_it: what makes one application with the ingress. It is not used: handles
                are made by name, for whatever configuration comes later.

        Raises:
            StartupError: in one readable message, why this process cannot serve.
        """
        write_to_serve_log(log_settings)
        keep_replica_server_off_other_interfaces(ray.util.get_node_ip_address())
        try:
            self._secret = load_cluster_secret(shoal_home())
            self._socket = bind_shared(http.host, http.port)
        except ValueError as error:
            raise StartupError(str(error)) from error
        self._telemetry = Telemetry()
        self._switch = AppSwitch()
        self._cpu_share = CPUShare()
        self._front: IngressFront | None = None
        self._listener: HTTPListener | None = None
        self._taking_over: asyncio.Task[None] | None = None
        self._problem: str | None = None

    # Called by Serve.

    async def reconfigure(self, user_config: dict[str, str]) -> None:
        """Serve by the sealed `order` in it; the first time, begin to listen.

        The first one is served when this returns. A later one is taken over beside the one before,
        however long its models take to load; Serve would not bring yet another one before this
        returns. `serving` tells.

        Raises:
            StartupError: the first one cannot be served.
        """
        await self._stop_taking_over()
        try:
            order = unseal(user_config["order"], self._secret)
        except ValueError as error:
            raise StartupError(str(error)) from error
        if self._front is None:
            await self._serve(order)
            self._listener = HTTPListener(self._switch, self._socket)
            self._listener.start()
            return
        self._front.expect(order)
        self._switch.try_again()  # what was being replaced may stay after all
        if order != self._front.order:
            self._taking_over = asyncio.create_task(self._take_over(order), name="configuration")

    # Called through handles.

    def serving(self) -> tuple[str, str | None]:
        """The digest of the order that is served, and what a person has to mend about a newer."""
        assert self._front is not None, "Serve calls `reconfigure` first"
        return self._front.order.digest, self._problem

    def models(self) -> list[str]:
        """The configurations of the models that are served, as JSON."""
        assert self._front is not None, "Serve calls `reconfigure` first"
        return [model.model_dump_json() for model in self._front.order.config.models]

    # Called by Serve.

    def record_autoscaling_stats(self) -> dict[str, float]:
        """The load that Serve cannot see, because requests do not pass through it: what
        `autoscaling_policy` decides by."""
        return {
            "num_open_requests": float(self._switch.num_open),
            "cpu_share": self._cpu_share.update(),
        }

    def check_health(self) -> None:
        """
        Raises:
            RuntimeError: nothing listens any more; Serve replaces the replica.
        """
        if self._listener is not None:
            self._listener.check_health()

    async def __del__(self) -> None:
        """Serve awaits this before it ends the process: finish the running responses."""
        listener: HTTPListener | None = getattr(self, "_listener", None)
        if listener is None:
            return  # it never served
        await self._stop_taking_over()
        await listener.drain()
        await self._switch.close()

    async def _serve(self, order: IngressOrder) -> None:
        front = await IngressFront.open(
            order, secret=self._secret, telemetry=self._telemetry, previous=self._front
        )
        previous = self._front
        if previous is not None:
            previous.successor = front
        await self._switch.switch_to(front.app, on_closed=front.close)
        self._front = front

    async def _take_over(self, order: IngressOrder) -> None:
        while True:
            try:
                await self._serve(order)
            except StartupError as error:
                self._problem = error.message
                logger.warning("the changed configuration cannot be served: %s", error.message)
            except ServiceUnavailableError as error:
                logger.warning("the changed configuration cannot be served yet: %s", error)
            else:
                logger.info("the changed configuration is served")
                return
            await asyncio.sleep(RETRY_S)

    async def _stop_taking_over(self) -> None:
        self._problem = None
        if self._taking_over is not None:
            self._taking_over.cancel()
            await asyncio.gather(self._taking_over, return_exceptions=True)
            self._taking_over = None
