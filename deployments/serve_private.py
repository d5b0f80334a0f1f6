"""The pieces of Ray Serve that are private, in one place, with the reason for each.

Checked against Ray 2.60, which `pyproject.toml` pins; an upgrade starts by reading this file.
"""

import asyncio
from typing import Any

import msgspec
import ray.serve._private.replica as serve_replica
import ray.serve.context as serve_context
from ray import serve
from ray._common.constants import HEAD_NODE_RESOURCE_NAME
from ray.exceptions import RayActorError
from ray.serve import Deployment
from ray.serve.exceptions import DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle

from cluster.errors import ServiceUnavailableError
from deployments.replica_endpoint import ReplicaEndpoint

_CRASH_PAUSE_S = 0.1
_OTHER_SOURCE_PAUSE_S = 0.02

# A resource that Ray gives to the head alone, one of it: who asks for a little runs there. Serve
# places its own controller so.
ON_HEAD = {HEAD_NODE_RESOURCE_NAME: 0.001}


class ServeReplicaPicker:
    """Picks through the deployment's own request router.

    `_reserve=False` leaves out the reservation on the replica: an actor call of 4 ms of CPU for a
    slot that our own channel does not use. Without it a pick costs 0.1 ms.
    """

    def __init__(self, handle: DeploymentHandle, *, model_name: str, source: str) -> None:
        """`source`: of the checkpoint. While it is being changed, a pool has replicas of both."""
        self._handle = handle
        self._model_name = model_name
        self._source = source

    async def pick(self) -> ReplicaEndpoint:
        """See `ReplicaPicker`."""
        while True:
            try:
                async with self._handle.choose_replica(_reserve=False) as selection:
                    endpoint = msgspec.convert(selection.replica_metadata, ReplicaEndpoint)
                if endpoint.facts.source == self._source:
                    return endpoint
                await asyncio.sleep(_OTHER_SOURCE_PAUSE_S)
            except DeploymentUnavailableError as error:
                raise self._is_unavailable() from error
            except (RayActorError, RayServeException):
                await asyncio.sleep(_CRASH_PAUSE_S)  # the controller is being replaced

    async def wake(self) -> None:
        """See `ReplicaPicker`. Serve starts a first replica for a call that waits in a handle; a
        pick does not count as one."""
        while True:
            try:
                await self._handle.facts.remote()
            except DeploymentUnavailableError as error:
                raise self._is_unavailable() from error
            except (RayActorError, RayServeException):
                await asyncio.sleep(_CRASH_PAUSE_S)
            else:
                return

    def _is_unavailable(self) -> ServiceUnavailableError:
        return ServiceUnavailableError(f"The replicas of {self._model_name} cannot be started.")


def pass_on_request_id(request_id: str) -> None:
    """Calls of replicas that this task makes from now on carry it; Serve makes one up for each that
    has none, and has no public way to say which."""
    serve_context._set_request_context(request_id=request_id)


def passed_on_request_id() -> str:
    """In a replica, during a call: the id that it carries."""
    return str(serve_context._get_serve_request_context().request_id)


def serve_details() -> dict[str, Any]:
    """Every application, deployment and replica as the controller sees them, as plain values; the
    public `serve.status` has no replicas. Blocks for some milliseconds."""
    client = serve_context._get_global_client()
    details: dict[str, Any] = client.get_serve_details()
    return details


def with_version(deployment: Deployment, version: str) -> Deployment:
    """The deployment whose replicas are replaced when its version changes.

    Without one, each deployment of an application replaces the replicas of all of it.
    """
    return deployment.options(version=version, _internal=True)


def handle_of(deployment: str) -> DeploymentHandle:
    """A handle by name, also of a deployment that is about to be, of this replica's application:
    asking whether it exists would block the event loop.
    """
    return serve.get_deployment_handle(deployment, application_name(), _check_exists=False)


def application_name() -> str:
    """Of this replica's application."""
    name: str = serve.get_replica_context().app_name
    return name


def keep_replica_server_off_other_interfaces(node_ip: str) -> None:
    """Bind the replica's own gRPC server to the node's address; call it in the constructor.

    Serve opens this server (calls between deployments, unpickled) on all interfaces right after
    the constructor, and has no option for the address.
    """
    add_port = serve_replica.add_port_to_grpc_server

    def add_port_on_node(server: Any, address: str) -> int:
        host, _, port = address.rpartition(":")
        return int(add_port(server, f"{node_ip if host == '[::]' else host}:{port}"))

    serve_replica.add_port_to_grpc_server = add_port_on_node
