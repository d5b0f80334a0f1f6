"""The check of GPUs runs here in miniature, so that it is known to work where there is one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[2]


def test_every_part_runs_and_is_reported(tmp_path: Path) -> None:
    output = tmp_path / "dry.json"
    done = subprocess.run(
        [sys.executable, "-m", "scripts.gpu_check", "--cpu", "--output", str(output)],
        cwd=ROOT,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(output.read_text())
    assert list(report) == [
        "environment",
        "operations",
        "attention",
        "sampling",
        "fp8 products",
        "equality",
        "bandwidth",
        "decoding",
        "prefill",
        "waiting",
        "memory",
    ]
    assert all(part["ok"] for part in report.values())
    assert set(report["decoding"]["batch 3"]) == {
        "floor_ms",
        "graphs, greedy",
        "graphs, sampled",
        "kernel by kernel, greedy",
        "kernel by kernel, sampled",
    }
