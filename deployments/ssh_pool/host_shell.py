"""Runs commands on one host through `ssh`, and says in one line why it did not work.

It never asks anything: without a usable key it fails at once.
"""

import subprocess
from dataclasses import dataclass
from pathlib import Path

CONNECT_TIMEOUT_S = 10
COMMAND_TIMEOUT_S = 60.0
_SSH_FAILED = 255  # ssh's own exit status; any other is the command's

# What ssh writes -> what a person should know. The first that is found counts.
_REASONS = (
    ("permission denied", "refuses the key of user {user} (auth.ssh_private_key, authorized_keys)"),
    ("identity file", "was not tried: the private key {key} cannot be read"),
    ("bad permissions", "was not tried: others can read the private key {key}"),
    ("host key verification failed", "has another host key than provider.ssh_known_hosts says"),
    ("could not resolve", "has a name that is not known here"),
    ("connection refused", "runs no ssh server on port 22"),
    ("no route to host", "cannot be reached (no route)"),
    ("network is unreachable", "cannot be reached (no route)"),
    ("timed out", f"does not answer within {CONNECT_TIMEOUT_S} s"),
)


class HostError(Exception):
    """A host cannot be used now. The message says why, in words that follow its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostShell:
    """How to get into the hosts of one pool."""

    user: str
    private_key: str | None
    known_hosts: Path | None  # None: any host key is taken

    def run(self, host: str, command: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """The standard output of `command`, run by a POSIX shell.

        Raises:
            HostError: ssh did not get in, or the command failed or took too long.
        """
        try:
            done = subprocess.run(
                [*self._ssh(), f"{self.user}@{host}", command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise HostError(f"did not finish {command[:80]!r} within {timeout_s:g} s") from error
        except OSError as error:
            raise HostError(f"was not tried: ssh cannot be run here: {error.strerror}") from error
        if done.returncode == _SSH_FAILED:
            raise HostError(self._reason(done.stderr))
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines()
            last_line = said[-1] if said else "no output"
            raise HostError(f"failed with status {done.returncode}: {last_line}")
        return done.stdout

    def _ssh(self) -> list[str]:
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": str(CONNECT_TIMEOUT_S),
            "ServerAliveInterval": "5",
            "ServerAliveCountMax": "3",
            "LogLevel": "ERROR",
            **host_key_options(self.known_hosts),
        }
        if self.private_key is not None:
            options["IdentitiesOnly"] = "yes"
        key = [] if self.private_key is None else ["-i", str(Path(self.private_key).expanduser())]
        return ["ssh", *key, *(f"-o{name}={value}" for name, value in options.items())]

    def _reason(self, stderr: str) -> str:
        lowered = stderr.lower()
        for pattern, reason in _REASONS:
            if pattern in lowered:
                return reason.format(user=self.user, key=self.private_key)
        lines = stderr.strip().splitlines()
        return f"cannot be reached: {lines[-1] if lines else 'ssh says nothing'}"


def host_key_options(known_hosts: Path | None) -> dict[str, str]:
    """Options of ssh: host keys must be the known ones, where there is a file of known ones."""
    if known_hosts is None:
        return {"StrictHostKeyChecking": "no", "UserKnownHostsFile": "/dev/null"}
    return {"StrictHostKeyChecking": "yes", "UserKnownHostsFile": str(known_hosts)}
