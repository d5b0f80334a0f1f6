"""Who has a host, written down on the host itself: `~/.shoal/pool_claim`, "cluster node-id".

Two clusters that list the same host take turns by it, and `ray down` finds by it what the head has
started. A claim is taken and given back by one shell command each, so that nothing comes between.
"""

import shlex

from deployments.ssh_pool.host_shell import HostError, HostShell

CLAIM_FILE = "$HOME/.shoal/pool_claim"
STOP_TIMEOUT_S = 120.0


def claim(shell: HostShell, host: str, *, cluster_name: str, node_id: str) -> None:
    """Take a host for a node of this cluster; one that it had before is forgotten.

    Raises:
        HostError: another cluster has it, or it cannot be reached.
    """
    owner = shell.run(
        host,
        f'umask 077; mkdir -p "$HOME/.shoal"; wanted={shlex.quote(f"{cluster_name} {node_id}")}; '
        # `set -C`: creating fails where the file is there already.
        f'if (set -C; echo "$wanted" > "{CLAIM_FILE}") 2>/dev/null; then echo; '
        f'else read -r owner _ < "{CLAIM_FILE}"; '
        f'if [ "$owner" = {shlex.quote(cluster_name)} ]; '
        f'then echo "$wanted" > "{CLAIM_FILE}"; echo; else echo "$owner"; fi; fi',
    ).strip()
    if owner:
        raise HostError(
            f"is in use by the cluster {owner!r}; take that one down, or delete ~/.shoal/pool_claim"
            " on the host"
        )


def claimed_node(shell: HostShell, host: str, *, cluster_name: str) -> str | None:
    """The node that this cluster has on the host, if it has one.

    Raises:
        HostError: the host cannot be reached.
    """
    words = shell.run(host, f'cat "{CLAIM_FILE}" 2>/dev/null || true').split()
    is_ours = len(words) == 2 and words[0] == cluster_name
    return words[1] if is_ours else None


def release(
    shell: HostShell, host: str, *, cluster_name: str, node_id: str, stop_commands: tuple[str, ...]
) -> None:
    """Stop what runs on the host and give it back, unless this very node has it no longer.

    Raises:
        HostError: it cannot be reached, or what runs there was not stopped; it stays claimed.
    """
    stop = shlex.quote(" && ".join(f"({command})" for command in stop_commands))
    ours = shlex.quote(f"{cluster_name} {node_id}")
    shell.run(
        host,
        f'if [ "$(cat "{CLAIM_FILE}" 2>/dev/null)" = {ours} ]; then '
        # As Ray runs its commands: with what the user's profile and .bashrc set.
        f'bash --login -i -c {stop} >/dev/null && rm -f "{CLAIM_FILE}"; fi',
        timeout_s=STOP_TIMEOUT_S,
    )
