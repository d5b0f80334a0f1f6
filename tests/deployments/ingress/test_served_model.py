"""What the ingress reads of a checkpoint, without its weights."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from cluster.config import ModelConfig
from cluster.errors import NotFoundError
from cluster.provider_config import ProviderConfig
from cluster.tenants.limits import TenantLimits
from deployments.ingress.served_model import (
    ModelDirectory,
    ServedModel,
    count_parameters,
    load_served_model,
)
from models.chat_template import ChatTemplateError
from tests.deployments.ingress.scripted_server import ScriptedPool


def load(folder: Path, **config: Any) -> ServedModel:
    model = ModelConfig(name="org/name", source="unused", **config)
    return load_served_model(model, folder, ScriptedPool(lambda _: iter(())), max_model_len=64)


def copy_without(checkpoint: Path, folder: Path, *keys: str) -> None:
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).write_text((checkpoint / file).read_text())
    path = folder / "tokenizer_config.json"
    config = {k: v for k, v in json.loads(path.read_text()).items() if k not in keys}
    path.write_text(json.dumps(config))


def test_the_card_comes_from_the_files(checkpoint: Path) -> None:
    card = load(checkpoint).card
    assert (card.id, card.organization, card.context_length) == ("org/name", "org", 64)
    assert (card.license, card.languages, card.tier) == ("apache-2.0", ["en"], "small")


def test_parameters_are_counted_from_the_headers(tmp_path: Path) -> None:
    for name, shapes in (("a", [[10, 20], [5]]), ("b", [[3]])):
        header: dict[str, Any] = {
            f"t{i}": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
            for i, shape in enumerate(shapes)
        }
        header["__metadata__"] = {"format": "pt"}
        text = json.dumps(header).encode()
        (tmp_path / f"{name}.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    assert count_parameters(tmp_path) == 208


def test_a_model_without_a_chat_template_is_served_without_chat(
    checkpoint: Path, tmp_path: Path
) -> None:
    copy_without(checkpoint, tmp_path, "chat_template")
    assert load(tmp_path).chat_template is None


def test_a_broken_or_missing_template_stops_the_start(checkpoint: Path, tmp_path: Path) -> None:
    copy_without(checkpoint, tmp_path, "chat_template")
    (tmp_path / "chat_template.jinja").write_text("{% if %}")
    with pytest.raises(ChatTemplateError):
        load(tmp_path)
    with pytest.raises(ChatTemplateError, match="nowhere"):
        load(checkpoint, chat_template="nowhere")


def test_models_are_found_by_name_or_by_default(checkpoint: Path) -> None:
    model = load(checkpoint)
    directory = ModelDirectory({model.name: model}, default_name=model.name)
    assert directory.find(None) is directory.find("org/name") is model
    with pytest.raises(NotFoundError, match="org/name"):
        directory.find("other")


def test_a_model_of_a_provider_is_none_of_ours_and_the_error_says_where_it_is(
    checkpoint: Path,
) -> None:
    model = load(checkpoint)
    directory = ModelDirectory(
        {model.name: model}, default_name=model.name, providers=[ProviderConfig(name="openai")]
    )
    with pytest.raises(NotFoundError, match=r"provider openai; .* POST /v1/chat/completions only"):
        directory.find("openai/gpt-4o")
    limits = TenantLimits(models=("org/*",))
    with pytest.raises(NotFoundError, match="does not exist here; there is: org/name"):
        directory.find("openai/gpt-4o", limits)


def test_adapters_are_models_beside_their_base(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "sql").mkdir()
    (tmp_path / "sql" / "adapter_config.json").write_text("{}")
    base = load(
        checkpoint,
        adapters=[{"name": "writer", "source": "org/writer-lora"}],
        adapter_folder=str(tmp_path),
    )
    directory = ModelDirectory({base.name: base}, default_name=base.name)
    writer, sql = directory.find("writer"), directory.find("org/name:sql")
    assert [model.name for model in directory.adapters()] == ["writer", "org/name:sql"]
    assert directory.all() == (base,)
    assert (writer.adapter, sql.adapter, base.adapter) == ("writer", "org/name:sql", "")
    assert writer.pool is sql.pool is base.pool
    assert (base.card.root, base.card.parent) == ("org/name", None)
    assert (writer.card.id, writer.card.root) == ("writer", "org/writer-lora")
    assert sql.card.root == sql.card.id == "org/name:sql"  # folders are nobody's business
    assert writer.card.parent == sql.card.parent == sql.card.base_model == "org/name"
    assert directory.has("org/name:sql")
    assert not directory.has("org/name:other")
    with pytest.raises(NotFoundError, match=r"there is: org/name, writer, org/name:sql$"):
        directory.find("org/name:other")


def test_an_alias_leads_to_its_model(checkpoint: Path) -> None:
    model = load(checkpoint, aliases=("mini", "small"))
    directory = ModelDirectory({model.name: model}, default_name=model.name)
    assert directory.find("mini") is directory.find("small") is model
    assert [one.name for one in directory.all()] == ["org/name"]
