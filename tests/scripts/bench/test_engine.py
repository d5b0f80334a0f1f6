"""The engine benchmark runs under every load, and says what it cannot do. No timing is judged."""

import sys
from pathlib import Path

import pytest
import torch

from scripts.bench import engine, engine_peers
from scripts.bench.engine_peers import PEERS
from scripts.bench.engine_workloads import WORKLOADS
from scripts.bench.step_parts import PARTS


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    return tmp_path


def tables(text: str) -> dict[str, list[list[str]]]:
    """Rows of cells, header first, by the header's first cell."""
    found: dict[str, list[list[str]]] = {}
    for paragraph in text.split("\n\n"):
        if paragraph.startswith("|"):
            rows = [
                [cell.strip() for cell in line.strip("|").split("|")]
                for line in paragraph.splitlines()
            ]
            assert len({len(row) for row in rows}) == 1, "every row has every cell"
            found[rows[0][0]] = [rows[0], *rows[2:]]
    return found


@pytest.mark.slow
def test_a_quick_run_measures_every_load_and_draws_them(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = home / "plots" / "engine.svg"
    engine.main(["--quick", "--plot", str(plot)])
    printed = capsys.readouterr().out
    found = tables(printed)
    loads = [row[:2] for row in found["load"][1:]]
    assert loads == [["admission", "1"], ["admission", "4"]], "the last table of this kind"
    throughput = printed.split("\n\n| load |", 1)[1].split("\n\n", 1)[0]
    for name in ("short", "long", "shared", "mixed"):
        assert f"| {name} | 1 |" in throughput
        assert f"| {name} | 4 |" in throughput
    assert found["prompt"][1][0] == "2,048"
    header, sizes, *parts = found["one step, ms (share)"]
    assert header[1:] == [
        f"{name}, {number}"
        for name in ("short", "long", "shared", "mixed", "admission")
        for number in (1, 4)
    ]
    assert sizes[2].startswith("4 / 4 / "), "four sequences decode"
    num_sequences, num_tokens, _ = (int(number) for number in sizes[-1].split(" / "))
    assert num_sequences == 5
    # How large a part depends on how long its tokens take: see `models.engine.prompt_share`.
    assert 4 < num_tokens <= 512, "a part of the long prompt is read beside the four"
    assert [row[0] for row in parts[: len(PARTS)]] == list(PARTS)
    assert all(float(row[1].split()[0]) > 0 for row in parts if row[0] in ("attention", "qkv"))
    assert parts[-1][0] == "**share of the roofline**"
    assert "<svg" in plot.read_text()


def test_transformers_takes_its_turn_and_missing_peers_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine_peers.shutil, "which", lambda name: None)
    monkeypatch.setattr(engine_peers.importlib.util, "find_spec", lambda name: None)
    arguments = "--quick --workload short,mixed --concurrency 2 --peers all --no-breakdown"
    engine.main(arguments.split())
    printed = capsys.readouterr().out
    assert "vLLM: not installed here" in printed
    assert "short: 16/8 tokens\n" in printed
    assert "llama.cpp: not installed" in printed
    header, short, mixed = tables(printed)["load"]
    column = header.index("transformers generate_batch, output tok/s")
    assert float(short[column]) > 0
    assert float(short[column + 1]) > 0
    assert mixed[column] == "–", "it cannot choose tokens in six ways at once"


def test_prefix_reuse_is_measured_alone(capsys: pytest.CaptureFixture[str]) -> None:
    engine.main(["--prefix", "--shape", "tiny", "--repeat", "1"])
    rows = tables(capsys.readouterr().out)["512-token prefix + 32"]
    assert [len(row) for row in rows] == [4, 4]


@pytest.mark.skipif(torch.cuda.is_available(), reason="these shapes are for GPUs")
def test_shapes_for_gpus_are_refused_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        engine.parse(["--shape", "8b"])
    assert "--shape 8b needs a GPU; here: tiny, demo, 135m, 1b" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--workload short,nothing", "'nothing' is not one of short, long"),
        ("--concurrency 1,0", "0 is not 1 or more"),
        ("--peers ollama", "'ollama' is not one of transformers"),
        ("--gguf no.gguf", "--gguf: no.gguf: there is no such file"),
        ("--long-len 200000", "--long-len 200000 is not one of 2048 to 131072"),
        ("--workload shared --prompt-len 512", "leaves nothing beside 512 shared"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(
    arguments: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        engine.parse(arguments.split())
    assert message in capsys.readouterr().err


def test_without_options_it_is_the_comparison_of_the_135m_shape() -> None:
    arguments = engine.parse([])
    assert (arguments.shape, arguments.dtype, arguments.concurrency) == ("135m", "bfloat16", [32])
    assert arguments.workload == ["short"]
    assert arguments.peers == list(PEERS)
    assert engine.parse(["--no-peer"]).peers == []


def test_the_long_prompt_and_the_context_can_be_chosen() -> None:
    arguments = engine.parse(["--workload", "admission,context,short", "--long-len", "32768"])
    admission, context, short = engine._chosen_workloads(arguments)
    assert (admission.long_len, admission.output_len) == (32_768, 8192)
    assert context.max_model_len + engine.EXTRA_TOKENS == 32_768
    assert short == WORKLOADS["short"]


def test_a_peer_is_missing_for_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(engine_peers.shutil, "which", lambda name: f"/bin/{name}")
    without = engine_peers.missing("llama.cpp", vllm_python=None, gguf=None)
    assert without is not None
    assert "--gguf names no model" in without
    assert engine_peers.missing("llama.cpp", vllm_python=None, gguf=tmp_path) is None
    assert engine_peers.missing("vllm", vllm_python=sys.executable, gguf=None) is None
    assert engine_peers.missing("transformers", vllm_python=None, gguf=None) is None
