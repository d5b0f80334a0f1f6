import os
import tempfile
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage.folder_walk import LAST, FolderWalk

SEGMENT = st.text("ab-.0é", min_size=1, max_size=2).filter(lambda name: name not in (".", ".."))
TREES = st.sets(st.lists(SEGMENT, min_size=1, max_size=3).map(tuple), max_size=15)


def write(folder: Path, keys: list[str]) -> list[str]:
    """Those of the keys that a folder can hold together, as files."""
    written = []
    for key in keys:
        path = folder / key
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
        except OSError:
            continue  # its parent is a file, or it is a folder
        written.append(key)
    return sorted(written, key=str.encode)


@given(TREES, st.text("ab-.0é/", max_size=4), st.text("ab-.0é/", max_size=4), st.booleans())
def test_a_walk_is_the_sorted_keys_with_a_prefix_behind_a_point(
    tree: set[tuple[str, ...]], prefix: str, after: str, skips_group: bool
) -> None:
    start = after.encode() + (LAST if skips_group else b"")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        keys = write(folder, ["/".join(path) for path in sorted(tree)])
        walk = FolderWalk(folder, prefix=prefix, after=start)
        assert [key for key, _ in walk] == [
            key for key in keys if key.startswith(prefix) and key.encode() > start
        ]
        assert all(path == folder / key for key, path in walk)


@pytest.mark.parametrize("prefix", ["//", "///", "//etc/", "../", "a/../../", "./", "/etc/"])
def test_no_prefix_leads_out_of_the_folder(tmp_path: Path, prefix: str) -> None:
    write(tmp_path, ["a/1"])
    (tmp_path / "inner").mkdir()
    with mock.patch("os.scandir", wraps=os.scandir) as scanned:
        assert list(FolderWalk(tmp_path / "inner", prefix=prefix)) == []
    for call in scanned.call_args_list:
        assert os.path.realpath(os.fsdecode(call.args[0])).startswith(str(tmp_path / "inner"))


def test_a_point_that_is_moved_on_skips_what_is_before_it(tmp_path: Path) -> None:
    write(tmp_path, ["a/1", "a/2", "a/b/3", "c", "d/4"])
    walk = FolderWalk(tmp_path)
    found = []
    for key, _ in walk:
        found.append(key)
        if key == "a/1":
            walk.after = b"a/" + LAST
    assert found == ["a/1", "c", "d/4"]
