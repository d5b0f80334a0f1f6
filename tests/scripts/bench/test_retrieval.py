"""A benchmark that is ended midway has kept what it had measured."""

import sys
from pathlib import Path

import pytest

from scripts.bench.retrieval import SIZES, Results, parse_arguments


def arguments(monkeypatch: pytest.MonkeyPatch, *given: str) -> list[int]:
    monkeypatch.setattr(sys, "argv", ["retrieval", *given])
    return list(parse_arguments().sizes)


def test_every_row_is_printed_and_written_as_soon_as_it_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "results.md"
    results = Results("2 cores", output)
    results.add(("chunks", "ms"), ["1,000", 2.5])
    assert "| 1,000 | 2.5 |" in capsys.readouterr().out
    assert output.read_text() == "2 cores\n\n| chunks | ms |\n|---|---|\n| 1,000 | 2.5 |\n"
    results.add(("other", "s"), ["a", 1])
    results.add(("chunks", "ms"), ["2,000", 3.5])
    lines = output.read_text().splitlines()
    assert lines[2:6] == ["| chunks | ms |", "|---|---|", "| 1,000 | 2.5 |", "| 2,000 | 3.5 |"]
    assert lines[-1] == "| a | 1 |"


def test_the_large_bucket_can_be_measured_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arguments(monkeypatch) == list(SIZES)
    assert arguments(monkeypatch, "--sizes", "--million") == []
    assert arguments(monkeypatch, "--sizes", "2000", "5000") == [2000, 5000]


def test_a_size_that_has_no_whole_files_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        arguments(monkeypatch, "--sizes", "1500")
    assert "1500 is not a multiple of 1000" in capsys.readouterr().err
