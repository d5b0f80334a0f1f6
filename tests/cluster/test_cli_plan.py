"""`shoal plan` as a person sees it, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from cluster.cli_error import CommandError
from cluster.cli_plan import find_config, plan

LLAMA_70B = Path(__file__).parent.parent / "data" / "llama_3_1_70b"


@pytest.fixture
def app() -> typer.Typer:
    app = typer.Typer()
    app.command()(plan)
    return app


def test_each_size_that_fits_has_a_row_and_each_other_a_reason(
    app: typer.Typer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    result = CliRunner().invoke(app, ["--model", str(LLAMA_70B), "--gpu", "h100:8"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert "LlamaForCausalLM, 70,554 million parameters in bfloat16, on 8 × H100 SXM" in lines[0]
    assert [line.split()[:2] for line in lines[2:5]] == [["2", "4"], ["4", "2"], ["8", "1"]]
    assert "16.4 GiB" in lines[4]
    assert lines[5].startswith("TP 1: the weights take 131.4 GiB")


def test_a_model_that_fits_nowhere_is_refused_with_both_numbers(app: typer.Typer) -> None:
    result = CliRunner().invoke(app, ["--model", str(LLAMA_70B), "--gpu", "l4"])
    assert isinstance(result.exception, CommandError)
    assert "131.4 GiB of each GPU, of whose memory 19.5 GiB may be used" in str(result.exception)


def test_a_model_that_is_nowhere_is_named() -> None:
    with pytest.raises(CommandError, match="model 'no/such folder': no such folder here"):
        find_config("no/such folder")


def test_the_demo_models_plan_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "from cluster.cli_plan import plan\n"
        "plan('demo', 'l4:2')\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "on 2 × L4" in done.stdout
