"""`shoal cluster` as a user calls it."""

from pathlib import Path

import pytest

from cluster.cli import main

ROOT = Path(__file__).resolve().parents[2]
FILE = "ray_config/hosts/cluster.yaml"


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(ROOT)


def run(*arguments: str) -> int:
    """The exit status."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_keys_are_made_once_and_then_the_file_is_ok(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("cluster", "check", FILE) == 1
    problems = capsys.readouterr().err.splitlines()
    assert len(problems) == 4
    assert all(line.startswith(f"error: {FILE}: file_mounts.~/.shoal/") for line in problems)
    assert run("cluster", "keys", FILE) == 0
    made = capsys.readouterr().out
    assert made.count("made ") == 4
    key = tmp_path / ".shoal" / "clusters" / "hosts" / "api_key"
    assert key.read_text().startswith("shoal-")
    assert run("cluster", "keys", FILE) == 0
    assert "nothing to make" in capsys.readouterr().out
    assert run("cluster", "check", FILE) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"OK {FILE}")
    assert "gpu_group: 0 to 1, 32 CPUs, 4 GPUs" in said


def test_a_file_that_is_not_there_is_one_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("cluster", "check", "absent.yaml") == 1
    assert "absent.yaml: No such file" in capsys.readouterr().err
