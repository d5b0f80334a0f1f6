"""From a `source` in the configuration to a folder."""

from pathlib import Path

import pytest

from cluster import model_source
from cluster.config import ConfigError
from cluster.model_source import (
    resolve_embedder_source,
    resolve_model_source,
    resolve_text_source,
)


def test_demo_is_a_chat_model_or_an_embedding_model_by_who_asks() -> None:
    chat, embedder = resolve_model_source("demo"), resolve_embedder_source("demo")
    assert chat != embedder
    assert (chat / "config.json").exists()
    assert (embedder / "model.safetensors").exists()
    assert (embedder / "1_Pooling" / "config.json").exists()


def test_a_folder_is_what_it_is(tmp_path: Path) -> None:
    assert resolve_embedder_source(str(tmp_path)) == tmp_path.resolve()
    assert resolve_model_source(str(tmp_path)) == tmp_path.resolve()


@pytest.mark.parametrize("source", ["/no/such/folder", "two/many/parts", "../x"])
def test_what_is_no_folder_and_no_hub_id_is_refused_by_name(source: str) -> None:
    with pytest.raises(ConfigError, match=f"source '{source}': neither an existing folder"):
        resolve_embedder_source(source)


def test_who_only_needs_the_texts_does_not_fetch_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def snapshot_download(_: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(model_source, "snapshot_download", snapshot_download)
    assert resolve_text_source("some/model") == resolve_model_source("some/model") == tmp_path
    texts, everything = asked
    assert set(everything) - set(texts) == {"*.safetensors"}
    assert resolve_text_source("demo") == resolve_model_source("demo")
