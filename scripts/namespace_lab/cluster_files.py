"""The shipped files for hosts of one's own, with the laboratory's addresses and the demo's models.

Everything else of them is tried as it ships.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from deployments.cluster_files.keys import make_keys
from scripts.namespace_lab.hosts import ROOT, Host, Lab

SHIPPED = ROOT / "ray_config" / "hosts" / "cluster.yaml"
API_PORT = 8000
CHAT_MODEL = "shoal/demo-chat"

# On the head's two places there is room for one replica: a second one needs another host. Four
# conversations at once want it, and five seconds without them do not any more.
SERVED = {
    "models": [
        {
            "name": CHAT_MODEL,
            "source": "demo",
            "num_cpus": 1.5,
            "min_replicas": 1,
            "max_replicas": 2,
            "autoscaling": {"target_num_seqs": 2, "downscale_delay_s": 5},
            "engine": {"num_threads": 1},
        }
    ],
    "embedders": [],
    "http": {"host": "0.0.0.0", "port": API_PORT},
}


def write_cluster_files(lab: Lab, head: Host, workers: Sequence[Host]) -> Path:
    """The cluster file; its shoal.yaml and keys beside it."""
    cluster = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    folder = lab.folder
    (folder / "known_hosts").write_text(lab.known_hosts([head, *workers]))
    (folder / "shoal.yaml").write_text(yaml.safe_dump(SERVED))
    cluster["provider"] |= {
        "head_host": head.address,
        "hosts": {"cpu": [host.address for host in workers]},
        "ssh_known_hosts": str(folder / "known_hosts"),
    }
    cluster["auth"] = {"ssh_user": "root", "ssh_private_key": str(folder / "id")}
    types = cluster["available_node_types"]
    types["head"]["resources"] = {"CPU": 2}
    types["cpu"] |= {"resources": {"CPU": 2}, "max_workers": len(workers)}
    cluster["available_node_types"] = {"head": types["head"], "cpu": types["cpu"]}
    cluster["max_workers"] = len(workers)
    cluster["idle_timeout_minutes"] = 0.25
    shared = {
        "~/shoal": str(ROOT),
        "~/.shoal/ray.env": str(ROOT / "ray_config" / "ray.env"),
        "~/.shoal/shoal.yaml": str(folder / "shoal.yaml"),
    }
    cluster["file_mounts"] = {
        remote: shared.get(remote, str(folder / "keys" / Path(local).name))
        for remote, local in cluster["file_mounts"].items()
    }
    for key in ("head_start_ray_commands", "worker_start_ray_commands"):
        cluster[key] = [_patiently(command) for command in cluster[key]]
    shipped_addresses = ",".join(shipped_hosts())
    addresses = ",".join(host.address for host in (head, *workers))
    text = yaml.safe_dump(cluster, sort_keys=False)
    # The ssh server's user is root: there is no sudo in the namespaces.
    text = text.replace(shipped_addresses, addresses).replace("sudo ", "")
    path = folder / "cluster.yaml"
    path.write_text(text)
    make_keys(yaml.safe_load(text))
    return path


def _patiently(command: str) -> str:
    """All hosts share the cores of one machine, which may have other things to do, and Ray gives up
    a start after 15 to 30 s, whatever it is told."""
    if " ray start " not in command:
        return command
    again = "ray stop --force; echo 'Ray did not start in time; again'"
    loop = f"for attempt in 1 2 3 4; do ({command}) && started=yes && break; {again}; done"
    return f'started=; {loop}; [ -n "$started" ]'


def shipped_hosts() -> list[str]:
    """The addresses in the shipped file, the head's first."""
    provider: dict[str, Any] = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))["provider"]
    workers = [host for hosts in provider["hosts"].values() for host in hosts]
    return [provider["head_host"], *dict.fromkeys(workers)]
