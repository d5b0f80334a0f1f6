"""Embedding checkpoints, made once per family."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.models.embedding.checkpoints import save_checkpoint

Plain = Callable[..., Path]


@pytest.fixture(scope="session")
def _originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def original(family: str) -> Path:
        if family not in made:
            made[family] = save_checkpoint(tmp_path_factory.mktemp(family), family)
        return made[family]

    return original


@pytest.fixture
def plain(_originals: Callable[[str], Path], tmp_path: Path) -> Plain:
    """`plain(family)` → a folder of one's own with a checkpoint that says nothing of pooling."""

    def copy(family: str = "bert") -> Path:
        folder = tmp_path / family
        shutil.copytree(_originals(family), folder)
        return folder

    return copy
