"""ARCHITECTURE.md lists every module as the code describes itself."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_list_of_modules_is_true() -> None:
    command = [sys.executable, "-m", "scripts.module_list", "--check"]
    check = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert check.returncode == 0, check.stderr
