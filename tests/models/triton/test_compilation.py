"""The interpreter runs what a GPU's compiler may refuse: every kernel is compiled for one, too."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_every_kernel_compiles_for_a_gpu(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path),
        "TRITON_INTERPRET": "0",
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.triton.kernel_compiler"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert {line.partition(":")[0] for line in lines} >= {
        "add_rms_norm_kernel",
        "rotate_kernel",
        "silu_mul_kernel",
        "write_kernel",
        "decode_kernel",
        "reduce_kernel",
        "prefill_kernel",
        "quantize_fp8_kernel",
        "multiply_fp8_kernel",
        "choose_ranked_kernel",
        "choose_whole_kernel",
    }
    assert all(line.endswith("local memory 0") for line in lines), done.stdout
