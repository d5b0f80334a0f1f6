"""What PEFT writes is understood, and what is not computed here is refused by its name."""

import math
from pathlib import Path

import pytest

from models.adapters.peft_config import AdapterError, PEFTConfig, read_peft_config
from tests.models.adapters.adapter_samples import write_config

QUERY = "model.layers.1.self_attn.q_proj"
PLAIN: dict[str, object] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"]}


def read(folder: Path, **config: object) -> PEFTConfig:
    write_config(folder, **(PLAIN | config))
    return read_peft_config(folder)


def test_the_scaling_is_alpha_by_rank_or_by_its_root(tmp_path: Path) -> None:
    assert read(tmp_path).scaling_of(QUERY) == 2
    assert read(tmp_path, use_rslora=True).scaling_of(QUERY) == 8 / math.sqrt(4)


def test_patterns_give_modules_a_rank_and_an_alpha_of_their_own(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        rank_pattern={"layers.1.self_attn.q_proj": 16, "q_proj": 2},
        alpha_pattern={"up_proj": 3.5},
    )
    other, up = QUERY.replace("1", "0"), "model.layers.0.mlp.up_proj"
    assert [config.rank_of(name) for name in (QUERY, other, up)] == [16, 2, 4]
    assert [config.scaling_of(name) for name in (QUERY, other, up)] == [0.5, 4, 3.5 / 4]


def test_the_targets_say_what_must_be_there(tmp_path: Path) -> None:
    assert read(tmp_path).expected_modules(2) == {
        f"model.layers.{layer}.{module}"
        for layer in (0, 1)
        for module in ("self_attn.q_proj", "mlp.up_proj")
    }
    assert read(tmp_path, layers_to_transform=[1]).expected_modules(2) == {
        QUERY,
        "model.layers.1.mlp.up_proj",
    }
    assert read(tmp_path, target_modules=[QUERY]).expected_modules(2) == {QUERY}
    assert len(read(tmp_path, target_modules="all-linear").expected_modules(2)) == 14
    assert read(tmp_path, target_modules=r".*\.[qv]_proj").expected_modules(2) == set()


def test_starts_that_leave_the_base_model_alone_are_taken(tmp_path: Path) -> None:
    for start in (True, False, None, "gaussian", "eva", "orthogonal"):
        assert read(tmp_path, init_lora_weights=start).rank == 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, r"peft_type 'IA3' is not supported; supported: 'LORA'"),
        ({"use_dora": True}, "use_dora = true is not supported; supported: false"),
        ({"bias": "lora_only"}, 'bias = "lora_only" is not supported; supported: "none"'),
        ({"lora_bias": True}, "lora_bias"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"modules_to_save": ["lm_head"]}, r'modules_to_save = \["lm_head"\] is not supported'),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["x"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ({"task_type": "SEQ_CLS"}, 'task_type = "SEQ_CLS"'),
        ({"init_lora_weights": "pissa_niter_4"}, "changes the base model's weights"),
        ({"target_modules": ["q_proj", "embed_tokens"]}, '"embed_tokens", which is not supported'),
        ({"target_modules": []}, "target_modules must be"),
        ({"target_modules": [3]}, "target_modules has 3"),
        ({"r": 0}, "r must be a positive integer, not 0"),
        ({"r": "8"}, 'r must be a positive integer, not "8"'),
        ({"lora_alpha": None}, "lora_alpha must be a number, not null"),
        ({"lora_alpha": float("nan")}, "lora_alpha must be a number"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"layers_to_transform": "all"}, "layers_to_transform must be"),
        ({"rank_pattern": {"(a+)+b": 2}}, "is a regular expression; supported: names"),
        ({"rank_pattern": {"q_proj": -2}}, "q_proj must be a positive integer"),
        ({"alpha_pattern": []}, None),
        ({"alpha_pattern": [1]}, "alpha_pattern must be an object"),
    ],
)
def test_what_is_not_computed_is_refused_by_its_name(
    config: dict[str, object], message: str | None, tmp_path: Path
) -> None:
    if message is None:
        read(tmp_path, **config)
        return
    with pytest.raises(AdapterError, match=message) as caught:
        read(tmp_path, **config)
    assert str(caught.value).startswith("adapter_config.json: ")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"{", "not JSON"), (b"[]", "must be an object"), (b"\xff", "not JSON"), (None, "no such")],
)
def test_a_broken_file_is_named_without_its_folder(
    content: bytes | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / "adapter_config.json").write_bytes(content)
    with pytest.raises(AdapterError, match=message) as caught:
        read_peft_config(tmp_path)
    assert str(tmp_path) not in str(caught.value)
