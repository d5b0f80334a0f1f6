"""What sentence-transformers' files mean, and what in them is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import CheckpointError
from models.embedding.layout import Activation, NormalizeLayout, Pooling, read_layout
from tests.models.embedding.checkpoints import WIDTH, add_layout, edit_json, write_json


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint without weights: the layout does not read them."""
    write_json(tmp_path / "config.json", {"architectures": ["BertModel"]})
    return tmp_path


Files = Callable[[Path], None]


def test_the_files_of_old_versions(folder: Path) -> None:
    add_layout(folder, ["mean", "cls"], max_seq_length=99, do_lower_case=True)
    layout = read_layout(folder)
    assert layout.encoder_folder == folder
    assert layout.poolings == (Pooling.CLS, Pooling.MEAN)  # in that library's order
    assert layout.token_width == WIDTH
    assert layout.head == (NormalizeLayout(),)
    assert (layout.max_input_tokens, layout.is_lowercased) == (99, True)
    assert (layout.query_prefix, layout.passage_prefix) == (None, None)


def test_the_files_of_version_6(folder: Path) -> None:
    base = "sentence_transformers.base.modules"
    modules = [
        {"path": "", "type": f"{base}.transformer.Transformer"},
        {
            "path": "1_Pooling",
            "type": "sentence_transformers.sentence_transformer.modules.pooling.Pooling",
        },
        {"path": "2_Dense", "type": f"{base}.dense.Dense"},
        {"path": "3_Normalize", "type": f"{base}.normalize.Normalize"},
    ]
    write_json(folder / "modules.json", modules)
    (folder / "1_Pooling").mkdir()
    pooling = {"embedding_dimension": 32, "pooling_mode": "lasttoken", "include_prompt": True}
    write_json(folder / "1_Pooling" / "config.json", pooling)
    (folder / "2_Dense").mkdir()
    dense = {
        "in_features": 32,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
        "module_input_name": "sentence_embedding",
        "module_output_name": "sentence_embedding",
    }
    write_json(folder / "2_Dense" / "config.json", dense)
    encoder = {
        "transformer_task": "feature-extraction",
        "modality_config": {
            "text": {"method": "forward", "method_output_name": "last_hidden_state"}
        },
        "module_output_name": "token_embeddings",
    }
    write_json(folder / "sentence_bert_config.json", encoder)
    layout = read_layout(folder)
    assert layout.poolings == (Pooling.LAST_TOKEN,)
    layer, normalization = layout.head
    assert isinstance(normalization, NormalizeLayout)
    assert not isinstance(layer, NormalizeLayout)
    assert (layer.num_outputs, layer.has_bias) == (8, False)
    assert layer.activation is Activation.IDENTITY
    assert layout.max_input_tokens is None


def test_the_encoder_may_be_in_a_folder_of_its_own(folder: Path) -> None:
    add_layout(folder)
    edit_json(folder / "modules.json", lambda m: m[0].update(path="0_Transformer"))
    (folder / "0_Transformer").mkdir()
    write_json(folder / "0_Transformer" / "sentence_roberta_config.json", {"max_seq_length": 7})
    layout = read_layout(folder)
    assert layout.encoder_folder == folder / "0_Transformer"
    assert layout.max_input_tokens == 7


@pytest.mark.parametrize(
    ("prompts", "query", "passage"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, "q: ", "p: "),
        ({"prompts": {"query": "q: ", "passage": "p: ", "document": "d: "}}, "q: ", "d: "),
        ({"prompts": {"query": "q: "}}, "q: ", None),
        ({"prompts": {"all": "a: "}, "default_prompt_name": "all"}, "a: ", "a: "),
        ({"prompts": {}, "default_prompt_name": None}, None, None),
        ({"__version__": {}}, None, None),
    ],
)
def test_prompts(folder: Path, prompts: Any, query: str | None, passage: str | None) -> None:
    write_json(folder / "config_sentence_transformers.json", prompts)
    layout = read_layout(folder)
    assert (layout.query_prefix, layout.passage_prefix) == (query, passage)


def pooling_config(**values: object) -> Files:
    def write(folder: Path) -> None:
        write_json(folder / "1_Pooling" / "config.json", values)

    return write


def modules(*kinds: str) -> Files:
    def write(folder: Path) -> None:
        write_json(
            folder / "modules.json",
            [{"path": f"{i}_X" if i else "", "type": kind} for i, kind in enumerate(kinds)],
        )

    return write


def text(name: str, content: str) -> Files:
    return lambda folder: (folder / name).write_text(content) and None


OURS = "sentence_transformers.models."

REFUSED: list[tuple[Files, str]] = [
    (pooling_config(pooling_mode="median"), r"1_Pooling/config.json: .*'median' is not supported"),
    (pooling_config(pooling_mode=["mean", 3]), r"1_Pooling/config.json: .* is not supported"),
    (pooling_config(pooling_mode=[]), r"1_Pooling/config.json: .* is not supported"),
    (pooling_config(pooling_mode_attention_tokens=True), r"'pooling_mode_attention_tokens' is not"),
    (pooling_config(pooling_mode_cls_token="yes"), r"pooling_mode_cls_token must be true or false"),
    (text("1_Pooling/config.json", "{"), r"1_Pooling/config.json: not JSON"),
    (text("1_Pooling/config.json", "[1]"), r"1_Pooling/config.json: must hold an object"),
    (text("modules.json", "{}"), r"modules.json: must hold a list"),
    (text("modules.json", '[{"type": 1}]'), r"modules.json: each module needs a type and a path"),
    (text("modules.json", "\x00\xff"), r"modules.json: not JSON"),
    (modules(OURS + "CNN", OURS + "Pooling"), r"modules.json: .*'CNN'.* not supported"),
    (modules(OURS + "Transformer"), r"modules.json: .* not supported; supported: Transformer, Po"),
    (modules("custom_st.Transformer", OURS + "Pooling"), r"'custom_st.Transformer' is .* own code"),
    (text("sentence_bert_config.json", '{"max_seq_length": 0}'), r"max_seq_length must be a pos"),
    (text("sentence_bert_config.json", '{"do_lower_case": 1}'), r"do_lower_case must be true or"),
    (
        text("sentence_bert_config.json", '{"transformer_task": "fill-mask"}'),
        r"transformer_task 'fill-mask' is not supported",
    ),
    (
        text("sentence_bert_config.json", '{"modality_config": {"image": {}}}'),
        r"modality_config: only texts",
    ),
    (text("config_sentence_transformers.json", '{"prompts": {"a": 1}}'), r"prompts.a must be a te"),
    (text("config_sentence_transformers.json", '{"prompts": []}'), r"prompts must be an object"),
]


@pytest.mark.parametrize(("spoil", "message"), REFUSED)
def test_what_is_not_understood_is_refused_by_name(
    folder: Path, spoil: Files, message: str
) -> None:
    add_layout(folder)
    spoil(folder)
    with pytest.raises(CheckpointError, match=message):
        read_layout(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation_function": "evil.Module"}, r"activation_function 'evil.Module' is not supp"),
        ({"use_residual": True}, r"use_residual is not supported"),
        ({"in_features": None}, r"in_features and out_features are needed"),
        ({"out_features": "8"}, r"out_features must be a positive integer"),
        ({"module_input_name": "token_embeddings"}, r"module_input_name other than"),
    ],
)
def test_dense_layers_that_do_something_else_are_refused(
    folder: Path, change: dict[str, object], message: str
) -> None:
    add_layout(folder, dense=[(8, "torch.nn.modules.activation.Tanh")])
    edit_json(folder / "2_Dense" / "config.json", lambda c: c.update(change))
    with pytest.raises(CheckpointError, match=message):
        read_layout(folder)


def test_other_modules_after_the_pooling_are_refused_but_dropout_means_nothing(
    folder: Path,
) -> None:
    add_layout(folder, is_normalized=False)
    names = json.loads((folder / "modules.json").read_text())
    for kind, is_supported in (("Dropout", True), ("LayerNorm", False)):
        write_json(folder / "modules.json", [*names, {"path": "2_X", "type": OURS + kind}])
        if is_supported:
            assert read_layout(folder).head == ()
        else:
            with pytest.raises(CheckpointError, match=r"2_X: the module LayerNorm is not"):
                read_layout(folder)


@pytest.mark.parametrize("place", ["../elsewhere", "/etc"])
def test_a_module_is_only_looked_for_below_the_checkpoint(folder: Path, place: str) -> None:
    add_layout(folder)
    edit_json(folder / "modules.json", lambda m: m[1].update(path=place))
    with pytest.raises(CheckpointError, match=r"is not a folder below the checkpoint"):
        read_layout(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: no such checkpoint folder"):
        read_layout(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"empty/config.json: no such file"):
        read_layout(tmp_path / "empty")
