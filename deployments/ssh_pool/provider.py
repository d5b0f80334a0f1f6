"""A Ray node provider for hosts of our own: what Ray wants and has no host for yet starts one.

Ray's `local` provider never starts workers with the current autoscaler (ray#59905) and knows one
kind of worker only. Here every worker type has its list of hosts (`provider.hosts`), a host is
leased when a node of its type is wanted, and it is given back, stopped, when Ray has no use for it.
Hosts are never switched on or off.

An instance lives in the process of `ray up` and `ray down`, and another one in the autoscaler on
the head; each has a book of its own (`leases`), and the claims on the hosts (`claims`) tell either
what the other did. Ray calls from several threads.
"""

import logging
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

from ray.autoscaler import tags as tags_of_ray
from ray.autoscaler._private.command_runner import SSHCommandRunner
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.tags import (
    NODE_KIND_HEAD,
    NODE_KIND_WORKER,
    STATUS_UNINITIALIZED,
    TAG_RAY_NODE_KIND,
    TAG_RAY_NODE_STATUS,
    TAG_RAY_USER_NODE_TYPE,
)

from cluster.config import shoal_home
from deployments.ssh_pool.claims import claim, claimed_node, release
from deployments.ssh_pool.host_shell import HostError, HostShell, host_key_options
from deployments.ssh_pool.leases import (
    CLAIM_EXPIRES_S,
    STOP_EXPIRES_S,
    Lease,
    LeaseBook,
    LeaseState,
    now_s,
)
from deployments.ssh_pool.pool_config import ADDED_KEYS, HeadNode, PoolConfig, PoolConfigError

MAX_PARALLEL_SSH = 32

Result = TypeVar("Result")

logger = logging.getLogger(__name__)


class SSHPool(NodeProvider):  # type: ignore[misc]  # Ray has no types
    """`provider: {type: external, module: deployments.ssh_pool.provider.SSHPool, …}`."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        """
        Raises:
            PoolConfigError: the section is wrong.
        """
        super().__init__(provider_config, cluster_name)
        self._config = PoolConfig.parse(provider_config)
        folder = shoal_home() / "pools"
        self._book = LeaseBook(folder, cluster_name)
        known_hosts = self._config.ssh_known_hosts
        if self._config.known_host_lines:
            known_hosts = folder / f"{self._book.path.stem}.known_hosts"
            known_hosts.write_text("\n".join(self._config.known_host_lines) + "\n")
        self._shell = HostShell(
            user=self._config.ssh_user,
            private_key=self._config.ssh_private_key,
            known_hosts=known_hosts,
        )
        self.clean_up: Thread | None = None  # stops workers of an earlier start of Ray
        if self._config.head_node is not None:
            self._note_head(self._config.head_node)

    # What Ray does with the whole file.

    @staticmethod
    def bootstrap_config(cluster_config: dict[str, Any]) -> dict[str, Any]:
        """Copy into the section what the provider needs of the rest of the file.

        Raises:
            PoolConfigError: the section is wrong, or the file names a worker type without hosts.
        """
        config = deepcopy(cluster_config)
        section, auth = config["provider"], config["auth"]
        for key in ADDED_KEYS:
            section.pop(key, None)  # nobody writes these by hand
        section["ssh_user"] = auth["ssh_user"]
        if "ssh_private_key" in auth:
            section["ssh_private_key"] = auth["ssh_private_key"]
        PoolConfig.parse(section)
        if len(config["cluster_name"].split()) != 1:
            raise PoolConfigError(f"cluster_name: must be one word, not {config['cluster_name']!r}")
        return config

    def prepare_for_head_node(self, cluster_config: dict[str, Any]) -> dict[str, Any]:
        """What the provider on the head needs to know: its own key, and who the head is."""
        config = deepcopy(cluster_config)
        section = config["provider"]
        lease = self._book.read().leases[self._config.head_host]
        section["head_node"] = {
            "node_id": lease.node_id,
            "tags": lease.tags,
            "start_id": secrets.token_hex(8),
        }
        if "ssh_private_key" in config["auth"]:
            section["ssh_private_key"] = config["auth"]["ssh_private_key"]
        known_hosts = section.pop("ssh_known_hosts", None)
        if known_hosts is not None:
            text = Path(known_hosts).expanduser().read_text(encoding="utf-8")
            section["known_host_lines"] = text.splitlines()
        return config

    def get_command_runner(self, *args: Any, **kwargs: Any) -> Any:
        """Ray's own, held to the known host keys where there are any."""
        runner = super().get_command_runner(*args, **kwargs)
        if isinstance(runner, SSHCommandRunner):
            runner.ssh_options.arg_dict.update(host_key_options(self._shell.known_hosts))
        return runner

    # Which nodes there are.

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        """Their ids."""
        return [
            lease.node_id
            for lease in self._book.read().running().values()
            if tag_filters.items() <= lease.tags.items()
        ]

    def nodes_for_teardown(self, tag_filters: Mapping[str, str]) -> list[str]:
        """For `ray down`: what the hosts themselves say that they are, since the head leased most.

        Hosts that do not answer are named in the log and left out.
        """
        if self._config.head_node is not None:
            return self.non_terminated_nodes(tag_filters)
        kind = tag_filters.get(TAG_RAY_NODE_KIND)
        workers = [host for host in self._config.all_hosts if host != self._config.head_host]
        hosts = [
            *([self._config.head_host] if kind in (None, NODE_KIND_HEAD) else []),
            *(workers if kind in (None, NODE_KIND_WORKER) else []),
        ]
        found = self._on_each(dict.fromkeys(hosts, ""), self._claimed_node)
        return [node_id for node_id in found.values() if node_id is not None]

    def is_running(self, node_id: str) -> bool:
        return node_id in self.non_terminated_nodes({})

    def is_terminated(self, node_id: str) -> bool:
        return not self.is_running(node_id)

    def node_tags(self, node_id: str) -> dict[str, str]:
        """Empty for a node that is no more."""
        leases = self._book.read()
        host = leases.host_of(node_id)
        return {} if host is None else leases.leases[host].tags

    def external_ip(self, node_id: str) -> str:
        """The host, as the file names it; nodes have no other address."""
        return host_of_node(node_id)

    def internal_ip(self, node_id: str) -> str:
        """See `external_ip`."""
        return host_of_node(node_id)

    def set_node_tags(self, node_id: str, tags: Mapping[str, str]) -> None:
        """A node that is up to date clears its host's record; one whose set-up failed marks it."""
        with self._book.change() as leases:
            host = leases.host_of(node_id)
            if host is None:
                return
            leases.leases[host].tags.update(tags)
            match tags.get(TAG_RAY_NODE_STATUS):
                case tags_of_ray.STATUS_UP_TO_DATE:
                    leases.troubles.pop(host, None)
                case tags_of_ray.STATUS_UPDATE_FAILED:
                    reason = "could not be set up; the autoscaler's log (monitor.*) has the output"
                    leases.note_trouble(host, reason, now_s())

    # Taking hosts and giving them back.

    def create_node(
        self, node_config: Mapping[str, Any], tags: Mapping[str, str], count: int
    ) -> dict[str, Any]:
        """Lease up to `count` hosts of the type; the new nodes by their ids.

        Raises:
            NodeLaunchException: not one could be had; says of each host why.
        """
        hosts = self._hosts_for(tags)
        created: dict[str, Any] = {}
        while len(created) < count:
            reserved = self._reserve(hosts, tags, count - len(created))
            if not reserved:
                break
            is_claimed = self._on_each(reserved, self._claim)
            created |= {reserved[host]: {} for host, claimed in is_claimed.items() if claimed}
        if not created:
            node_type = tags.get(TAG_RAY_USER_NODE_TYPE, NODE_KIND_HEAD)
            raise NodeLaunchException("NoHost", self._why_none(node_type, hosts), None)
        return created

    def terminate_node(self, node_id: str) -> None:
        """See `terminate_nodes`."""
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: Sequence[str]) -> None:
        """Stop Ray on the hosts and give them back. Returns when that is done.

        A host that does not answer, or does not stop, is not leased again for a while.

        Raises:
            HostError: not on the head: these hosts were not stopped, and nobody will try again.
        """
        self._mark_stopping(node_ids)
        failures = self._release_all(node_ids)
        if failures and self._config.head_node is None:
            raise HostError("; ".join(f"host {host} {why}" for host, why in failures.items()))

    def _hosts_for(self, tags: Mapping[str, str]) -> tuple[str, ...]:
        if tags.get(TAG_RAY_NODE_KIND) == NODE_KIND_HEAD:
            return (self._config.head_host,)
        return self._config.hosts.get(tags.get(TAG_RAY_USER_NODE_TYPE, ""), ())

    def _reserve(self, hosts: Sequence[str], tags: Mapping[str, str], count: int) -> dict[str, str]:
        """Free hosts -> their new node ids; nobody else reserves them."""
        now = now_s()
        with self._book.change() as leases:
            free = [host for host in hosts if leases.is_free(host, now)][:count]
            for host in free:
                leases.leases[host] = Lease(
                    node_id=_new_node_id(host),
                    tags={TAG_RAY_NODE_STATUS: STATUS_UNINITIALIZED, **tags},
                    state=LeaseState.CLAIMING,
                    expires_s=now + CLAIM_EXPIRES_S,
                )
            return {host: leases.leases[host].node_id for host in free}

    def _claim(self, host: str, node_id: str) -> bool:
        failure: str | None = None
        try:
            claim(self._shell, host, cluster_name=self.cluster_name, node_id=node_id)
        except HostError as error:
            failure = str(error)
            logger.warning("host %s %s", host, failure)
        with self._book.change() as leases:
            if failure is None:
                leases.leases[host].state = LeaseState.RUNNING
            else:
                del leases.leases[host]
                leases.note_trouble(host, failure, now_s())
        return failure is None

    def _mark_stopping(self, node_ids: Sequence[str]) -> None:
        with self._book.change() as leases:
            for node_id in node_ids:
                host = leases.host_of(node_id)
                if host is not None:
                    leases.leases[host].state = LeaseState.STOPPING
                    leases.leases[host].expires_s = now_s() + STOP_EXPIRES_S

    def _release_all(self, node_ids: Sequence[str]) -> dict[str, str]:
        """The hosts that were not stopped, and why."""
        nodes = {host_of_node(node_id): node_id for node_id in node_ids}
        failures = self._on_each(nodes, self._release)
        return {host: failure for host, failure in failures.items() if failure is not None}

    def _release(self, host: str, node_id: str) -> str | None:
        """Why it failed, if it did."""
        failure: str | None = None
        try:
            release(
                self._shell,
                host,
                cluster_name=self.cluster_name,
                node_id=node_id,
                stop_commands=self._config.stop_commands,
            )
        except HostError as error:
            failure = f"{error} (when it was to be stopped)"
            logger.warning("host %s %s", host, failure)
        with self._book.change() as leases:
            if leases.host_of(node_id) == host:
                del leases.leases[host]
            if failure is not None:
                leases.note_trouble(host, failure, now_s())
        return failure

    def _why_none(self, node_type: str, hosts: Sequence[str]) -> str:
        if not hosts:
            return f"worker type {node_type!r} has no hosts (provider.hosts.{node_type})"
        leases = self._book.read()
        reasons = []
        for host in hosts:
            trouble = leases.troubles.get(host)
            in_use = leases.leases.get(host)
            if in_use is not None:
                reasons.append(f"{host} is in use ({in_use.state.value})")
            elif trouble is not None:
                reasons.append(f"{host} {trouble.reason}")
        return f"no host for {node_type!r}: " + "; ".join(reasons)

    def _note_head(self, head: HeadNode) -> None:
        """Enter the head. Workers of an earlier start of Ray are stopped: this one has none."""
        with self._book.change() as leases:
            stale = [
                lease.node_id
                for host, lease in leases.leases.items()
                if host != self._config.head_host
            ]
            is_new_start = leases.start_id != head.start_id
            leases.start_id = head.start_id
            leases.leases[self._config.head_host] = Lease(
                node_id=head.node_id, tags=head.tags, state=LeaseState.RUNNING
            )
        if is_new_start and stale:
            self._mark_stopping(stale)
            # Ray waits for the constructor, and the hosts may take their time.
            self.clean_up = Thread(target=self._release_all, args=(stale,), daemon=True)
            self.clean_up.start()

    def _claimed_node(self, host: str, _: str) -> str | None:
        try:
            return claimed_node(self._shell, host, cluster_name=self.cluster_name)
        except HostError as error:
            logger.warning("host %s %s; if Ray runs there, stop it by hand", host, error)
            return None

    def _on_each(
        self, nodes: Mapping[str, str], do: Callable[[str, str], Result]
    ) -> dict[str, Result]:
        """Call `do` with each host and its node id, side by side; the results by host."""
        with ThreadPoolExecutor(MAX_PARALLEL_SSH, thread_name_prefix="ssh-pool") as threads:
            futures = {host: threads.submit(do, host, node) for host, node in nodes.items()}
            return {host: future.result() for host, future in futures.items()}


def host_of_node(node_id: str) -> str:
    """Node ids are a host and a number that is used once."""
    return node_id.rpartition("-")[0]


def _new_node_id(host: str) -> str:
    return f"{host}-{secrets.token_hex(4)}"
