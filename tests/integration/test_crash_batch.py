"""A batch on a real cluster of its own whose parts are killed: `scripts.crash_batch`, in small."""

import os
import subprocess
import sys

import pytest


@pytest.mark.cluster
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_every_line_comes_once_while_each_part_is_killed() -> None:
    environment = {name: value for name, value in os.environ.items() if "SHOAL_" not in name}
    run = subprocess.run(
        [sys.executable, "-m", "scripts.crash_batch", "--lines", "400", "--kills", "4"],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout
    assert "every line once, as undisturbed" in run.stdout
