"""`scripts.rolling_load`, a short form of it: an update, a sleep and a waking under load."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.integration.conftest import free_port, share_kernels

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parent.parent.parent


def test_three_models_answer_whole_while_one_is_updated_and_one_sleeps_and_wakes(
    tmp_path: Path, session_environment: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    share_kernels(home)
    command = [sys.executable, "-m", "scripts.rolling_load", "--port", str(free_port())]
    command += ["--clients", "1", "--tokens", "60", "--settle", "2"]
    with session_environment.context() as patch:
        patch.setenv("SHOAL_HOME", str(home))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no failed request, no cut stream" in done.stdout
