"""The engine without a server: texts in, texts out."""

from pathlib import Path

import pytest

from cluster.config import EngineConfig
from cluster.errors import BadRequestError, ValidationError
from cluster.types import FinishReason, GrammarKind, GrammarSpec, SamplingParams
from models.llm import LLM
from tests.models.conftest import MakeCheckpoint
from tests.models.grammar.grammar_walk import byte_level_tokenizer


@pytest.fixture(scope="module")
def llm(make_checkpoint: MakeCheckpoint) -> LLM:
    folder: Path = make_checkpoint("llama", vocab_size=545)
    byte_level_tokenizer(folder / "tokenizer.json")
    return LLM(folder, engine_config=EngineConfig(max_model_len=256, max_num_seqs=8))


def test_texts_and_tokens_of_every_prompt_come_back_in_order(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True, logprobs=0)
    texts = ["the quick brown fox", "another text"]
    outputs = llm.generate(texts, params)
    again = llm.generate([output.prompt_token_ids for output in outputs], params)
    for text, output, same in zip(texts, outputs, again, strict=True):
        assert llm.tokenizer.decode(output.prompt_token_ids, skip_special_tokens=True) == text
        (only,) = output.continuations
        assert only == same.continuations[0]
        assert len(only.token_ids) == len(only.logprobs or ()) == 20
        assert only.text == llm.tokenizer.decode(only.token_ids, skip_special_tokens=True)
        assert only.finish_reason is FinishReason.LENGTH


def test_a_prefix_that_was_computed_before_is_counted_as_cached(llm: LLM) -> None:
    prompt = list(range(100, 150))
    first, second = (
        llm.generate([prompt], SamplingParams(max_tokens=4, ignore_eos=True, n=2))[0]
        for _ in range(2)
    )
    assert (first.num_cached_tokens, second.num_cached_tokens) == (0, 48)
    assert [len(continuation.token_ids) for continuation in second.continuations] == [4, 4]


def test_a_prompt_that_cannot_be_served_stops_the_others_before_they_begin(llm: LLM) -> None:
    with pytest.raises(BadRequestError, match="context of 256"):
        llm.generate([[5, 6], [7] * 300], SamplingParams(max_tokens=2))
    assert not llm.engine.has_unfinished


def test_one_that_is_refused_late_leaves_nothing_of_the_others_behind(llm: LLM) -> None:
    grammar = GrammarSpec(kind=GrammarKind.REGEX, text="a+")
    plain = SamplingParams(max_tokens=2, ignore_eos=True)
    with pytest.raises(ValidationError, match="cannot be guided"):
        llm.generate([[5, 6], [7, 8]], [plain, SamplingParams(max_tokens=2, grammar=grammar)])
    assert not llm.engine.has_unfinished
    assert len(llm.generate([[9]], plain)[0].continuations[0].token_ids) == 2
