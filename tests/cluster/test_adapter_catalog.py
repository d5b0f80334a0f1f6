"""Which adapters there are: those of the configuration, and those that lie in a folder now."""

from pathlib import Path

import pytest

from cluster import adapter_catalog
from cluster.adapter_catalog import AdapterCatalog
from cluster.config import ConfigError, ModelConfig


def put(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "adapter_config.json").write_text("{}")
    return folder / name


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AdapterCatalog:
    monkeypatch.setattr(adapter_catalog, "LISTING_LIFETIME_S", 0.0)
    put(tmp_path / "many", "sql")
    put(tmp_path / "many", "b.2")
    put(tmp_path, "elsewhere")
    (tmp_path / "many" / "no-adapter").mkdir()
    listed = [
        {"name": "writer", "source": str(tmp_path / "elsewhere")},
        {"name": "org/hub", "source": "org/hub-adapter"},
        {"name": "lost", "source": str(tmp_path / "lost")},
    ]
    return AdapterCatalog(
        ModelConfig(
            name="org/base",
            source="unused",
            adapters=listed,  # type: ignore[arg-type]  # as the file has them
            adapter_folder=str(tmp_path / "many"),
        )
    )


def test_those_of_the_configuration_come_first_and_subfolders_have_the_models_name_before_theirs(
    catalog: AdapterCatalog,
) -> None:
    names = ["writer", "org/hub", "lost", "org/base:b.2", "org/base:sql"]
    assert catalog.names() == names
    assert all(catalog.has(name) for name in names)


def test_adapters_come_and_go_with_their_folders(catalog: AdapterCatalog, tmp_path: Path) -> None:
    folder = put(tmp_path / "many", "new")
    assert catalog.find("org/base:new") == folder
    assert "org/base:new" in catalog.names()
    (folder / "adapter_config.json").unlink()
    assert not catalog.has("org/base:new")
    assert "org/base:new" not in catalog.names()
    with pytest.raises(ConfigError, match="no such adapter any more"):
        catalog.find("org/base:new")


@pytest.mark.parametrize(
    "name",
    [
        "sql",
        "org/base:",
        "org/base",
        "org/base:../elsewhere",
        "org/base:/etc",
        "org/base:.",
        "x:sql",
    ],
)
def test_names_never_leave_the_folder(name: str, catalog: AdapterCatalog) -> None:
    assert not catalog.has(name)


def test_only_a_hub_is_told_to_clients(catalog: AdapterCatalog, tmp_path: Path) -> None:
    assert catalog.hub_id("org/hub") == "org/hub-adapter"
    assert catalog.hub_id("writer") is None
    assert catalog.hub_id("lost") is None
    assert catalog.find("writer") == tmp_path / "elsewhere"
    with pytest.raises(ConfigError, match=r"^its folder is not on this machine$"):
        catalog.find("lost")
