"""Building the CPU kernels: once, in one piece, and never in the way."""

import ctypes
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from models.native import library
from models.native.library import NativeBuildError, build, native_library


@pytest.fixture
def _one_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those, the one that needs no other."""
    (source,) = (path for path in library.SOURCES if path.stem == "kernels")
    monkeypatch.setattr(library, "SOURCES", (source,))


@pytest.mark.usefixtures("_one_source")
def test_a_build_is_kept_and_found_again(tmp_path: Path) -> None:
    first = build(tmp_path)
    written_ns = first.stat().st_mtime_ns
    assert build(tmp_path) == first
    assert first.stat().st_mtime_ns == written_ns
    assert [path.name for path in tmp_path.iterdir()] == [first.name], "no scratch is left"
    assert ctypes.CDLL(str(first)).shoal_silu_mul


@pytest.mark.usefixtures("_one_source")
def test_another_source_is_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path)
    changed = tmp_path / "changed.cpp"
    changed.write_text(library.SOURCES[0].read_text() + "\n// changed\n")
    monkeypatch.setattr(library, "SOURCES", (changed,))
    assert build(tmp_path) != first


def test_a_compiler_that_fails_is_named_with_its_first_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "broken.cpp"
    broken.write_text("this is not C++;\n")
    monkeypatch.setattr(library, "SOURCES", (broken,))
    with pytest.raises(NativeBuildError, match=r"broken\.cpp:1"):
        build(tmp_path / "out")


def test_without_a_compiler_torch_computes_and_the_log_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SHOAL_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    native_library.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert native_library() is None
    finally:
        native_library.cache_clear()
    assert "no C++ compiler" in caplog.text


@pytest.mark.usefixtures("without_kernels")
def test_the_kernels_can_be_switched_off() -> None:
    assert native_library() is None


def test_a_process_has_one_openmp_whoever_came_first() -> None:
    """Two pools of threads would fight for the cores."""
    code = (
        "import torch; from models.native.library import native_library; "
        "assert native_library() is not None; torch.ones(4000, 4000) @ torch.ones(4000, 4); "
        "maps = open('/proc/self/maps').read().splitlines(); "
        "print(len({line.split()[-1] for line in maps if 'omp' in line.rpartition('/')[2]}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
