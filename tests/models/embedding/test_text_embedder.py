"""Vectors against transformers' own model, one text at a time, pooled by hand."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import transformers
from numpy.typing import NDArray
from safetensors.torch import load_file

from cluster.config import EmbedderConfig
from cluster.errors import ValidationError
from cluster.model_source import resolve_embedder_source
from models.embedding.batching import BatchLimits
from models.embedding.text_embedder import TextEmbedder
from tests.models.embedding.checkpoints import TEXTS, WIDTH, add_layout, edit_json, write_json

Plain = Callable[..., Path]


def embedder(folder: Path, **config: Any) -> TextEmbedder:
    raw = {"name": "test/embed", "source": str(folder), "dtype": "float32", "device": "cpu"}
    return TextEmbedder(EmbedderConfig.model_validate(raw | config), folder)


def hidden_states(folder: Path, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """transformers' last layer, [tokens, W] of each text, without any padding."""
    config = transformers.AutoConfig.from_pretrained(folder)
    auto = transformers.AutoModel
    if config.model_type == "t5":
        auto = transformers.AutoModelForTextEncoding
    model = auto.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([row])).last_hidden_state[0] for row in rows]


def unit(vectors: list[torch.Tensor]) -> NDArray[np.float32]:
    stacked = torch.stack(vectors)
    result: NDArray[np.float32] = (stacked / stacked.norm(dim=1, keepdim=True)).numpy()
    return result


def linear(folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    weights = load_file(folder / "model.safetensors")
    return lambda x: F.linear(x, weights["linear.weight"], weights["linear.bias"])


POOLED: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "cls": lambda h: h[0],
    "max": lambda h: h.max(dim=0).values,
    "mean": lambda h: h.mean(dim=0),
    "mean_sqrt_len_tokens": lambda h: h.sum(dim=0) / len(h) ** 0.5,
    "weightedmean": lambda h: (
        (h * torch.arange(1, len(h) + 1)[:, None]).sum(dim=0) / sum(range(1, len(h) + 1))
    ),
    "lasttoken": lambda h: h[-1],
}


@pytest.mark.parametrize("family", ["bert", "roberta", "mpnet", "distilbert", "t5", "qwen3"])
@pytest.mark.parametrize("pooling", ["mean", "lasttoken"])
def test_every_family_gives_the_vectors_of_transformers(
    plain: Plain, family: str, pooling: str
) -> None:
    folder = add_layout(plain(family), pooling)
    found = embedder(folder)
    rows = found.whole(TEXTS)
    expected = unit([POOLED[pooling](h) for h in hidden_states(folder, rows)])
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", list(POOLED))
def test_every_pooling_is_computed_over_the_text_alone(plain: Plain, pooling: str) -> None:
    folder = add_layout(plain(), pooling)
    found = embedder(folder)
    rows = found.whole(TEXTS)
    expected = unit([POOLED[pooling](h) for h in hidden_states(folder, rows)])
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)


def test_several_poolings_are_put_one_after_the_other(plain: Plain) -> None:
    folder = add_layout(plain(), ["cls", "mean"])
    found = embedder(folder)
    rows = found.whole(TEXTS)
    expected = unit([torch.cat([h[0], h.mean(dim=0)]) for h in hidden_states(folder, rows)])
    assert found.width == 2 * WIDTH
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)


def test_dense_layers_follow_the_pooling(plain: Plain) -> None:
    dense = [
        (48, "torch.nn.modules.linear.Identity"),
        (16, "torch.nn.modules.activation.Tanh"),
    ]
    folder = add_layout(plain(), "mean", dense=dense)
    found = embedder(folder)
    rows = found.whole(TEXTS)
    first, second = (linear(folder / f"{position}_Dense") for position in (2, 3))
    expected = unit([torch.tanh(second(first(h.mean(dim=0)))) for h in hidden_states(folder, rows)])
    assert found.width == 16
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)


def test_a_plain_encoder_is_pooled_by_its_mean_and_a_causal_model_by_its_last_token(
    plain: Plain,
) -> None:
    folder = plain("bert")
    found = embedder(folder)
    rows = found.whole(TEXTS)
    expected = unit([h.mean(dim=0) for h in hidden_states(folder, rows)])
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)

    folder = plain("qwen3")
    edit_json(folder / "config.json", lambda c: c.update(architectures=["Qwen3ForCausalLM"]))
    found = embedder(folder)
    rows = found.whole(TEXTS)
    expected = unit([h[-1] for h in hidden_states(folder, rows)])
    np.testing.assert_allclose(found.embed_tokens(rows), expected, atol=1e-5)


def test_qwen_reads_the_end_of_text_token_that_its_tokenizer_appends(plain: Plain) -> None:
    found = embedder(add_layout(plain("qwen3"), "lasttoken"))
    end = found.tokenizer.token_to_id("<|endoftext|>")
    assert [row[-1] for row in found.whole(TEXTS)] == [end] * len(TEXTS)
    limited = embedder(found_folder(found), max_input_tokens=6)
    assert [row[-1] for row in limited.cut(TEXTS)] == [end] * len(TEXTS)
    assert max(map(len, limited.cut(TEXTS))) == 6


def found_folder(found: TextEmbedder) -> Path:
    return Path(found._config.source)


@pytest.mark.parametrize(
    ("family", "pooling", "dtype", "tolerance"),
    [
        ("bert", "mean", "float32", 1e-5),
        ("qwen3", "lasttoken", "float32", 1e-5),
        ("bert", "mean", "bfloat16", 1e-3),
        ("qwen3", "lasttoken", "bfloat16", 1e-3),
    ],
)
def test_a_vector_does_not_depend_on_what_else_is_in_the_batch(
    plain: Plain, family: str, pooling: str, dtype: str, tolerance: float
) -> None:
    found = embedder(add_layout(plain(family), pooling), dtype=dtype)
    rows = found.cut([*TEXTS, *(text[:20] for text in TEXTS), *(["again"] * 20)])
    alone = np.concatenate([found.embed_tokens([row]) for row in rows])
    together = found.embed_tokens(rows)
    found.batch_limits = BatchLimits(max_tokens=256, step_tokens=64)
    otherwise = found.embed_tokens(rows)
    assert 1 - (alone * together).sum(axis=1).min() < tolerance
    assert 1 - (alone * otherwise).sum(axis=1).min() < tolerance
    if dtype == "float32":
        np.testing.assert_allclose(together, alone, atol=tolerance)
        np.testing.assert_allclose(otherwise, alone, atol=tolerance)


def test_vectors_are_unit_float32_whatever_the_checkpoint_says(plain: Plain) -> None:
    found = embedder(add_layout(plain(), "mean", is_normalized=False), dtype="bfloat16")
    vectors = found.embed_tokens(found.cut(TEXTS))
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


# Limits.


def test_the_limit_is_the_checkpoints_own_and_the_configuration_may_lower_it(plain: Plain) -> None:
    folder = add_layout(plain(), max_seq_length=100)
    assert embedder(folder).max_input_tokens == 100
    assert embedder(folder, max_input_tokens=12).max_input_tokens == 12
    assert embedder(folder, max_input_tokens=128).max_input_tokens == 128  # its positions
    with pytest.raises(ValueError, match=r"max_input_tokens \(129\) .* 128 positions"):
        embedder(folder, max_input_tokens=129)


def test_without_a_limit_a_text_may_fill_the_positions(plain: Plain) -> None:
    assert embedder(plain("bert")).max_input_tokens == 128


@pytest.mark.parametrize("family", ["roberta", "mpnet"])
def test_positions_that_stand_for_padding_are_not_counted(plain: Plain, family: str) -> None:
    found = embedder(plain(family))
    assert found.max_input_tokens == 128  # of 130
    vectors = found.embed_tokens(found.cut(["word " * 500]))
    assert np.isfinite(vectors).all()


def test_the_tokenizers_own_limit_holds_where_nothing_else_is_said(plain: Plain) -> None:
    folder = plain()
    edit_json(folder / "tokenizer_config.json", lambda c: c.update(model_max_length=77))
    assert embedder(folder).max_input_tokens == 77


def test_a_prefix_must_leave_room_for_a_text(plain: Plain) -> None:
    folder = plain()
    with pytest.raises(ValueError, match=r"query_prefix .* of max_input_tokens \(8\)"):
        embedder(folder, max_input_tokens=8, query_prefix="one, two, three, four: ")


def test_a_passage_of_the_promised_length_is_read_whole(plain: Plain) -> None:
    folder = plain()
    found = embedder(folder, passage_prefix="passage: ", max_input_tokens=40)
    text = "1" * found.max_passage_tokens
    assert len(found.tokenizer.encode(text, add_special_tokens=False).ids) == (
        found.max_passage_tokens
    )
    (cut,) = found.cut([text], prefix=found.prefixes.passage)
    assert cut == found.tokenizer.encode("passage: " + text).ids


# What is refused, and what is cut.


def test_too_long_a_text_is_refused_with_both_numbers_or_cut(plain: Plain) -> None:
    found = embedder(plain(), max_input_tokens=10)
    with pytest.raises(ValidationError, match=r"input\.1: has \d+ tokens; .* at most 10") as caught:
        found.whole(["short", "long " * 30])
    assert caught.value.param == "input.1"
    assert [len(row) for row in found.cut(["short", "long " * 30])][1] == 10


@pytest.mark.parametrize("text", [" " * 40_000 + "far away", "x" * 40_000])
def test_a_text_of_endless_words_or_spaces_is_counted_too(plain: Plain, text: str) -> None:
    found = embedder(plain(), max_input_tokens=20)
    (cut,) = found.cut([text])
    assert cut == [*found.tokenizer.encode(text).ids[:19], found.tokenizer.token_to_id("[SEP]")]
    whole = found.tokenizer.encode(text).ids
    if len(whole) > 20:
        with pytest.raises(ValidationError, match="at most 20"):
            found.whole([text])
    else:
        assert found.whole([text]) == [whole]


def test_empty_inputs_are_refused_by_place(plain: Plain) -> None:
    found = embedder(plain())
    for refused in (
        lambda: found.cut(["a", ""]),
        lambda: found.whole(["a", ""]),
        lambda: found.checked([[5], []], is_cut=True),
    ):
        with pytest.raises(ValidationError, match=r"input\.1: must not be empty"):
            refused()
    with pytest.raises(ValidationError, match=r"input\.8: must not be empty"):
        found.whole(["a", ""], first=7)


def test_token_ids_are_read_as_they_are(plain: Plain) -> None:
    found = embedder(plain(), max_input_tokens=10)
    rows = found.whole(["hello there"])
    assert found.checked(rows, is_cut=False) == rows
    assert found.checked([list(range(4, 30))], is_cut=True) == [list(range(4, 14))]
    with pytest.raises(ValidationError, match=r"input\.0: has 26 tokens; .* at most 10"):
        found.checked([list(range(4, 30))], is_cut=False)
    with pytest.raises(ValidationError, match=r"input\.1: token ids must be below 400; given 400"):
        found.checked([[5], [6, 400]], is_cut=False)
    with pytest.raises(ValidationError, match=r"given -1"):
        found.checked([[-1]], is_cut=False)


# Texts.


def test_texts_are_lowercased_where_the_checkpoint_says_so(plain: Plain) -> None:
    cased = embedder(add_layout(plain("roberta"), do_lower_case=False))
    assert cased.whole(["HELLO"]) != cased.whole(["hello"])
    folder = found_folder(cased)
    edit_json(folder / "sentence_bert_config.json", lambda c: c.update(do_lower_case=True))
    assert embedder(folder).whole(["HELLO"]) == cased.whole(["hello"])


def test_prompts_of_the_checkpoint_stand_before_queries_and_passages(plain: Plain) -> None:
    folder = plain()
    prompts = {"query": "find: ", "document": "text: ", "other": "?"}
    write_json(folder / "config_sentence_transformers.json", {"prompts": prompts})
    found = embedder(folder)
    assert (found.prefixes.query, found.prefixes.passage) == ("find: ", "text: ")
    found = embedder(folder, query_prefix="", passage_prefix="p: ")
    assert (found.prefixes.query, found.prefixes.passage) == ("", "p: ")
    assert found.cut(["x"], prefix=found.prefixes.passage) == found.whole(["p: x"])


# The model that comes along.


@pytest.fixture(scope="module")
def demo() -> Path:
    return resolve_embedder_source("demo")


def test_the_demo_model_gives_its_published_vectors(demo: Path) -> None:
    """The model card: mean pooling, then unit length; cut at 256 tokens."""
    found = embedder(demo)
    assert (found.width, found.max_input_tokens) == (384, 256)
    tokenizer = transformers.AutoTokenizer.from_pretrained(demo)
    model = transformers.AutoModel.from_pretrained(demo, dtype=torch.float32).eval()
    texts = [*TEXTS, "word " * 600]
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.inference_mode():
        hidden = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = F.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1).numpy()
    np.testing.assert_allclose(found.embed_tokens(found.cut(texts)), expected, atol=1e-5)


def test_half_precision_of_the_demo_model_is_near_enough(demo: Path) -> None:
    exact, half = embedder(demo), embedder(demo, dtype="bfloat16")
    rows = exact.cut([text + f" {number}" for number in range(8) for text in TEXTS])
    cosines = (exact.embed_tokens(rows) * half.embed_tokens(rows)).sum(axis=1)
    assert cosines.min() > 0.9995
    assert exact.revision == half.revision


def test_the_demo_model_knows_what_is_alike(demo: Path) -> None:
    found = embedder(demo)
    query, near, far = found.embed_tokens(
        found.cut(
            [
                "How long is the guarantee?",
                "The warranty covers two years.",
                "Our office in Lisbon has a garden.",
            ]
        )
    )
    assert query @ near > query @ far + 0.2
