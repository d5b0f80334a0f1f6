from pathlib import Path

import pytest

from cluster.cli_logs import LogFollower, find_logs, last_lines, log_name


def names(logs_dir: Path, component: str | None = None) -> list[str]:
    return [log_name(path, logs_dir) for path in find_logs(logs_dir, component=component)]


def test_logs_are_found_in_folders_and_by_a_part_of_their_name(tmp_path: Path) -> None:
    (tmp_path / "serve").mkdir()
    for name in ("ingress.log", "serve/replica-1.log", "serve/replica-2.log", "notes.txt"):
        (tmp_path / name).touch()
    assert names(tmp_path) == ["ingress", "serve/replica-1", "serve/replica-2"]
    assert names(tmp_path, "Replica-2") == ["serve/replica-2"]
    assert names(tmp_path, "nothing") == []


def test_no_folder_means_no_logs(tmp_path: Path) -> None:
    assert find_logs(tmp_path / "absent") == []


@pytest.mark.parametrize("num_lines", [0, 1, 7, 5000, 9000])
def test_the_last_lines_of_a_file_longer_than_a_block(tmp_path: Path, num_lines: int) -> None:
    lines = [f"line {number} " + "x" * 40 for number in range(5000)]
    path = tmp_path / "a.log"
    path.write_text("\n".join(lines) + "\n")
    assert last_lines(path, num_lines) == (lines[-num_lines:] if num_lines else [])


def test_a_last_line_without_a_break_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\ntwo\nthr")
    assert last_lines(path, 2) == ["two", "thr"]


def test_following_shows_new_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("old\n")
    follower = LogFollower(logs_dir=tmp_path, component=None)
    with path.open("a") as file:
        file.write("new\nhal")
    assert follower.poll() == [("a", "new")]
    with path.open("a") as file:
        file.write("f\n")
    assert follower.poll() == [("a", "half")]
    assert follower.poll() == []


def test_following_notices_new_and_emptied_files(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("a long old line\n")
    follower = LogFollower(logs_dir=tmp_path, component=None)
    (tmp_path / "a.log").write_text("short\n")
    (tmp_path / "b.log").write_text("first\n")
    assert follower.poll() == [("a", "short"), ("b", "first")]


def test_bytes_that_are_not_utf8_do_not_stop_the_log(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\xff ok\n")
    assert last_lines(path, 5) == ["\N{REPLACEMENT CHARACTER} ok"]
