"""The whole engine, driven until all requests have ended, and what comes of it."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cluster.config import EngineConfig
from cluster.types import Request, SamplingParams, TokenDelta
from models.engine.engine import Engine
from models.engine.model_runner import ModelRunner
from models.grammar.compiler import GrammarCompiler

OUTPUT_LEN = 16

Outputs = dict[tuple[str, int], list[TokenDelta]]


def prompts_of_mixed_lengths() -> list[list[int]]:
    """Sixteen prompts of 1 to 120 tokens; half of them begin with the same 40."""
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(3, 257, (count,), generator=generator).tolist()

    shared = draw(40)
    lengths = [1, 2, 5, 15, 16, 17, 33, 80]
    return [draw(n) for n in lengths] + [shared + draw(n) for n in lengths]


def reference_outputs(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """Greedy continuations by transformers, one prompt at a time, end-of-sequence included."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = GenerationConfig(
        max_new_tokens=OUTPUT_LEN, do_sample=False, eos_token_id=2, pad_token_id=0
    )
    outputs = []
    for prompt in prompts:
        ids = model.generate(torch.tensor([prompt]), generation_config=config)
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


def make_engine(folder: Path, compiler: GrammarCompiler | None = None, **config: object) -> Engine:
    engine_config = EngineConfig(**{"max_model_len": 256, "max_num_seqs": 48, **config})  # type: ignore[arg-type]
    runner = ModelRunner(folder, engine_config, dtype="float32")
    return Engine(runner, engine_config, grammar_compiler=compiler)


def run(engine: Engine, requests: list[Request]) -> Outputs:
    """All deltas; the books are right after every step, and all blocks free in the end."""
    for request in requests:
        engine.add_request(request)
    deltas: Outputs = {}
    while engine.has_unfinished:
        for delta in engine.step():
            deltas.setdefault((delta.request_id, delta.index), []).append(delta)
        engine.check()
        if engine.is_stalled:
            engine.wait_for_adapters()
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    return deltas


def tokens(deltas: list[TokenDelta]) -> list[int]:
    return [token for delta in deltas for token in delta.token_ids]


def greedy(prompts: list[list[int]], **params: object) -> list[Request]:
    params = {"temperature": 0.0, "max_tokens": OUTPUT_LEN, **params}
    return [
        Request(
            request_id=str(k),
            prompt_token_ids=prompt,
            sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
        )
        for k, prompt in enumerate(prompts)
    ]


def texts_of(requests: list[Request], outputs: Outputs) -> list[list[int]]:
    """Each prompt with what followed it."""
    prompts = {request.request_id: request.prompt_token_ids for request in requests}
    return [prompts[request_id] + tokens(deltas) for (request_id, _), deltas in outputs.items()]


def assert_same(got: Outputs, wanted: Outputs) -> None:
    """Token for token, with the same ends; logprobs up to the order of a sum. However many tokens
    came in one delta."""
    assert got.keys() == wanted.keys()
    for key, deltas in wanted.items():
        assert tokens(got[key]) == tokens(deltas), key
        last, other = got[key][-1], deltas[-1]
        assert (last.finish_reason, last.stop_token_id) == (
            other.finish_reason,
            other.stop_token_id,
        )
        for one, theirs in zip(one_by_one(got[key]), one_by_one(deltas), strict=True):
            _assert_close(one, theirs)


def assert_same_bits(got: Outputs, wanted: Outputs) -> None:
    """Token for token, and every logprob exactly. However many tokens came in one delta."""
    assert got.keys() == wanted.keys()
    for key, deltas in wanted.items():
        mine, theirs = one_by_one(got[key]), one_by_one(deltas)
        assert [(d.token_ids, d.logprobs) for d in mine] == [
            (d.token_ids, d.logprobs) for d in theirs
        ], key


def one_by_one(deltas: list[TokenDelta]) -> list[TokenDelta]:
    """A delta for each token."""
    return [
        TokenDelta(
            request_id=delta.request_id,
            index=delta.index,
            token_ids=[token],
            logprobs=None if delta.logprobs is None else [delta.logprobs[place]],
            prompt_logprobs=delta.prompt_logprobs if place == 0 else None,
        )
        for delta in deltas
        for place, token in enumerate(delta.token_ids)
    ]


def _assert_close(got: TokenDelta, wanted: TokenDelta) -> None:
    assert (got.logprobs is None) == (wanted.logprobs is None)
    for left, right in (
        *zip(got.logprobs or [], wanted.logprobs or [], strict=True),
        *zip(got.prompt_logprobs or [], wanted.prompt_logprobs or [], strict=True),
    ):
        assert left.top_token_ids == right.top_token_ids
        assert left.logprob == pytest.approx(right.logprob, abs=1e-4)


def assert_was_crowded(engine: Engine, *, has_guessed: bool) -> None:
    """It has preempted, found prefixes, and had guesses accepted where it made some."""
    stats = engine.stats()
    assert stats.preemptions_total > 0
    assert stats.cached_prompt_tokens_total > 0
    assert (stats.spec_decode_accepted_tokens_total > 0) == has_guessed
