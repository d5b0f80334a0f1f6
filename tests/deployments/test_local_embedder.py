"""Texts in, vectors out, as everybody in a cluster asks for them: a real model, tiny and random."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.config import EmbedderConfig
from cluster.errors import TooManyRequestsError, ValidationError
from cluster.openai_schema.embeddings import MAX_REQUEST_TOKENS
from cluster.retrieval import Embedder, InputKind
from deployments.local_embedder import LocalEmbedder
from models.embedding.text_embedder import TextEmbedder
from tests.models.embedding.checkpoints import TEXTS, add_layout, save_checkpoint

QUERY, PLAIN, PASSAGE, BULK = InputKind.QUERY, InputKind.PLAIN, InputKind.PASSAGE, InputKind.BULK


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return add_layout(save_checkpoint(tmp_path_factory.mktemp("bert")), max_seq_length=64)


@pytest.fixture
def configuration(folder: Path) -> EmbedderConfig:
    raw: dict[str, Any] = {
        "name": "test/embed",
        "source": str(folder),
        "dtype": "float32",
        "device": "cpu",
        "query_prefix": "query: ",
        "passage_prefix": "passage: ",
    }
    return EmbedderConfig.model_validate(raw)


@pytest.fixture
def model(configuration: EmbedderConfig, folder: Path) -> TextEmbedder:
    return TextEmbedder(configuration, folder)


@pytest.fixture
async def local(configuration: EmbedderConfig, model: TextEmbedder) -> AsyncIterator[LocalEmbedder]:
    embedder = LocalEmbedder(configuration, model)
    embedder.start()
    yield embedder
    await embedder.stop()


async def test_it_is_an_embedder_and_knows_its_facts(
    local: LocalEmbedder, model: TextEmbedder
) -> None:
    embedder: Embedder = local
    facts = await embedder.facts()
    assert (facts.model_name, facts.width, facts.max_input_tokens) == ("test/embed", 32, 64)
    assert facts.revision == model.revision


@pytest.mark.parametrize(
    ("kind", "prefix"), [(PLAIN, ""), (BULK, ""), (QUERY, "query: "), (PASSAGE, "passage: ")]
)
async def test_each_kind_has_its_prefix_and_its_tokens_are_counted(
    local: LocalEmbedder, model: TextEmbedder, kind: InputKind, prefix: str
) -> None:
    texts = [text[:40] for text in TEXTS]
    found = await local.embed(texts, kind=kind)
    rows = model.whole([prefix + text for text in texts])
    np.testing.assert_allclose(found.vectors_ND, model.embed_tokens(rows), atol=1e-5)
    assert found.num_tokens == sum(map(len, rows))


async def test_long_texts_are_cut_but_for_those_of_the_endpoint_and_of_batches_which_are_refused(
    local: LocalEmbedder, model: TextEmbedder
) -> None:
    long = "one, two, three " * 40
    for kind in (QUERY, PASSAGE):
        assert (await local.embed([long], kind=kind)).num_tokens == 64
    row = list(range(4, 104))
    assert (await local.embed([row], kind=PASSAGE)).num_tokens == 64
    for kind in (PLAIN, BULK):
        with pytest.raises(ValidationError, match=r"input\.1: has \d+ tokens; .* at most 64"):
            await local.embed(["short", long], kind=kind)
        with pytest.raises(ValidationError, match=r"input\.0: has 100 tokens"):
            await local.embed([row], kind=kind)


@pytest.mark.parametrize("kind", list(InputKind))
async def test_nothing_and_empty_texts_are_refused(local: LocalEmbedder, kind: InputKind) -> None:
    with pytest.raises(ValidationError, match=r"input: must not be empty"):
        await local.embed([], kind=kind)
    with pytest.raises(ValidationError, match=r"input\.1: must not be empty"):
        await local.embed(["a", ""], kind=kind)
    with pytest.raises(ValidationError, match=r"input\.0: must not be empty"):
        await local.embed([[]], kind=kind)
    assert local.queue.num_queued_tokens == 0


async def test_a_wrong_text_far_behind_is_named_by_its_place(local: LocalEmbedder) -> None:
    texts = ["word " * 20] * 1500 + [""]
    with pytest.raises(ValidationError, match=r"input\.1500: must not be empty"):
        await local.embed(texts, kind=PASSAGE)


@pytest.mark.parametrize("kind", [PLAIN, BULK])
async def test_a_request_has_a_limit_of_tokens_in_all(
    local: LocalEmbedder, kind: InputKind
) -> None:
    texts = ["one, two, three, four, five"] * (MAX_REQUEST_TOKENS // 10)
    with pytest.raises(ValidationError, match=rf"at most {MAX_REQUEST_TOKENS} tokens in all"):
        await local.embed(texts, kind=kind)
    assert local.queue.num_queued_tokens == 0


async def test_many_callers_at_once_each_get_their_own(
    local: LocalEmbedder, model: TextEmbedder
) -> None:
    texts = [f"{text[: 5 + number]} {number}" for number in range(20) for text in TEXTS]
    kinds = list(InputKind)
    found = await asyncio.gather(
        *(local.embed([text], kind=kinds[i % 3]) for i, text in enumerate(texts))
    )
    prefixes = {QUERY: "query: ", PASSAGE: "passage: ", PLAIN: ""}
    rows = model.whole([prefixes[kinds[i % 3]] + text for i, text in enumerate(texts)])
    vectors = np.concatenate([embeddings.vectors_ND for embeddings in found])
    np.testing.assert_allclose(vectors, model.embed_tokens(rows), atol=1e-5)


async def test_a_query_is_computed_once(local: LocalEmbedder, model: TextEmbedder) -> None:
    num_computed = 0
    compute = model.compute

    def counting(rows: Any, shape: Any) -> Any:
        nonlocal num_computed
        num_computed += len(rows)
        return compute(rows, shape)

    model.compute = counting  # type: ignore[method-assign]  # the same, and a number
    first = await local.embed(["where is it?", "who?", "who?"], kind=QUERY)
    again = await local.embed(["who?", "where is it?"], kind=QUERY)
    np.testing.assert_array_equal(first.vectors_ND[[1, 0]], again.vectors_ND)
    np.testing.assert_array_equal(first.vectors_ND[1], first.vectors_ND[2])
    assert num_computed == 2
    assert first.num_tokens > again.num_tokens > 0
    again.vectors_ND[:] = 0  # a caller may do what it likes with its own
    third = await local.embed(["who?"], kind=QUERY)
    np.testing.assert_array_equal(third.vectors_ND[0], first.vectors_ND[1])
    await local.embed(["who?"], kind=PASSAGE)
    assert num_computed == 3


async def test_too_much_waiting_is_refused_at_once(
    configuration: EmbedderConfig, model: TextEmbedder
) -> None:
    small = configuration.model_copy(update={"max_queued_tokens": 100})
    embedder = LocalEmbedder(small, model)
    embedder.start()
    bulk = asyncio.create_task(embedder.embed(["one, two, three " * 3] * 200, kind=PASSAGE))
    await asyncio.sleep(0)
    with pytest.raises(TooManyRequestsError) as caught:
        await embedder.embed(["one, two, three " * 3] * 200, kind=PASSAGE)
    assert caught.value.retry_after_s
    assert len((await embedder.embed(["who?"], kind=QUERY)).vectors_ND) == 1
    assert len((await bulk).vectors_ND) == 200
    await embedder.stop()


async def test_a_caller_who_leaves_during_tokenization_leaves_nothing_behind(
    local: LocalEmbedder,
) -> None:
    bulk = asyncio.create_task(local.embed(["word " * 50] * 3000, kind=PASSAGE))
    await asyncio.sleep(0)
    assert local.queue.num_queued_tokens > 0
    bulk.cancel()
    await asyncio.gather(bulk, return_exceptions=True)
    assert local.queue.num_queued_tokens == 0
    assert len((await local.embed(["who?"], kind=QUERY)).vectors_ND) == 1


async def test_stopping_answers_those_who_are_here(
    configuration: EmbedderConfig, model: TextEmbedder
) -> None:
    embedder = LocalEmbedder(configuration, model)
    embedder.start()
    calls = [asyncio.create_task(embedder.embed([text[:40]], kind=PLAIN)) for text in TEXTS]
    await asyncio.sleep(0)
    await embedder.stop()
    assert all(len(call.result().vectors_ND) == 1 for call in calls)
