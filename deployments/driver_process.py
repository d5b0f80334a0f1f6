"""Runs `deployments.driver` as a process of its own, and passes on what it says."""

import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from cluster.config import ShoalConfig
from deployments.launch_events import Event, Phase, decode_event
from deployments.local_ray import LaunchError


def drive(
    command: Sequence[str],
    config: ShoalConfig,
    *,
    environment: Mapping[str, str],
    log_path: Path,
    say: Callable[[str], None],
) -> Event:
    """Run the driver and return its last event; `say` gets its phases.

    `environment` is all that it gets, and decides which Ray it finds. What it and its libraries
    write to standard error goes to `log_path`.

    Raises:
        LaunchError: it ended without an event.
    """
    outcome: Event | None = None
    with log_path.open("wb") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "deployments.driver", *command],
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
        with driver:
            assert driver.stdin is not None
            assert driver.stdout is not None
            driver.stdin.write(config.model_dump_json().encode())
            driver.stdin.close()
            for line in driver.stdout:
                event = decode_event(line)
                if isinstance(event, Phase):
                    say(event.text)
                elif event is not None:
                    outcome = event
    if outcome is None:
        lines = log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        last_line = lines[-1] if lines else "no output"
        raise LaunchError(f"the driver failed: {last_line} (more in {log_path})")
    return outcome
