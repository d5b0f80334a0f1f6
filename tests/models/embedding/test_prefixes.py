"""Who says what stands before a text: the configuration, the checkpoint, then the model's name."""

from pathlib import Path

import pytest

from cluster.config import EmbedderConfig
from models.embedding.layout import EmbeddingLayout, Pooling
from models.embedding.prefixes import Prefixes, choose_prefixes

BGE = "Represent this sentence for searching relevant passages: "


def layout(query: str | None = None, passage: str | None = None) -> EmbeddingLayout:
    return EmbeddingLayout(
        encoder_folder=Path("x"),
        poolings=(Pooling.MEAN,),
        token_width=None,
        head=(),
        includes_prompt=True,
        max_input_tokens=None,
        is_lowercased=False,
        query_prefix=query,
        passage_prefix=passage,
    )


def config(source: str = "some/model", **values: str) -> EmbedderConfig:
    return EmbedderConfig.model_validate({"name": "mine", "source": source} | values)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("intfloat/multilingual-e5-large", Prefixes(query="query: ", passage="passage: ")),
        ("/models/e5-base-v2/", Prefixes(query="query: ", passage="passage: ")),
        ("intfloat/E5-small-unsupervised", Prefixes(query="query: ", passage="passage: ")),
        ("BAAI/bge-base-en-v1.5", Prefixes(query=BGE)),
        ("intfloat/multilingual-e5-large-instruct", Prefixes()),
        ("intfloat/e5-mistral-7b-instruct", Prefixes()),
        ("thenlper/gte-large", Prefixes()),
        ("demo", Prefixes()),
    ],
)
def test_some_models_are_known_by_name(source: str, expected: Prefixes) -> None:
    assert choose_prefixes(config(source), layout(), names=()) == expected


def test_a_name_may_be_that_of_the_configuration_or_of_the_checkpoint() -> None:
    named = config("/data/x", name="intfloat/e5-base")
    assert choose_prefixes(named, layout(), names=()).query == "query: "
    names = ("/data/x", "intfloat/e5-large-v2")
    assert choose_prefixes(config("/data/x"), layout(), names=names).passage == "passage: "


def test_the_checkpoints_prompts_go_before_the_name_and_empty_ones_say_nothing() -> None:
    e5 = config("intfloat/e5-base")
    assert choose_prefixes(e5, layout("find: ", None), names=()) == Prefixes(query="find: ")
    assert choose_prefixes(e5, layout("", ""), names=()).query == "query: "


def test_the_configuration_goes_before_everything() -> None:
    e5 = config("intfloat/e5-base", query_prefix="", passage_prefix="text: ")
    found = choose_prefixes(e5, layout("find: ", "doc: "), names=())
    assert found == Prefixes(query="", passage="text: ")
