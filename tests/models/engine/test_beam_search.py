"""Beam search in the engine equals transformers' `generate(num_beams=…)`."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from cluster.types import BeamParams, FinishReason, Request, SamplingParams
from models.engine.beam_search import BeamReport, BeamSearch
from models.engine.step_inputs import BeamCandidates
from tests.models.conftest import MakeCheckpoint
from tests.models.engine_runs import (
    greedy,
    make_engine,
    prompts_of_mixed_lengths,
    run,
    tokens,
)

MAX_TOKENS = 12
END_TOKENS = [2, 7, 11, 19, 23, 30]
BYTES_PER_BLOCK = 2 * 2 * 2 * 16 * 4 * 16


@pytest.fixture(scope="module")
def folder(make_checkpoint: MakeCheckpoint) -> Path:
    # Few tokens, several of which end a sequence, so that hypotheses do end before the limit.
    return make_checkpoint("llama", vocab_size=48, initializer_range=0.1, eos_token_id=END_TOKENS)


def beam_request(request_id: str, prompt: list[int], beam: BeamParams, n: int = 3) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(
            n=n, temperature=0.0, max_tokens=MAX_TOKENS, beam=beam, logprobs=2
        ),
    )


def prompts() -> list[list[int]]:
    return [[token % 45 + 3 for token in prompt] for prompt in prompts_of_mixed_lengths()]


def reference(folder: Path, prompt: list[int], beam: BeamParams, n: int) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    config = GenerationConfig(
        max_new_tokens=MAX_TOKENS,
        num_beams=beam.width,
        num_return_sequences=n,
        do_sample=False,
        length_penalty=beam.length_penalty,
        early_stopping=beam.early_stopping,
        eos_token_id=END_TOKENS,
        pad_token_id=0,
    )
    outputs = model.generate(torch.tensor([prompt]), generation_config=config)
    found = []
    for output in outputs[:, len(prompt) :].tolist():
        ends = [position + 1 for position, token in enumerate(output) if token in END_TOKENS]
        found.append(output[: ends[0] if ends else len(output)])
    return found


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0, -0.5])
def test_hypotheses_equal_transformers(
    folder: Path, length_penalty: float, early_stopping: bool
) -> None:
    beam = BeamParams(width=4, length_penalty=length_penalty, early_stopping=early_stopping)
    engine = make_engine(folder)
    deltas = run(engine, [beam_request(str(k), p, beam) for k, p in enumerate(prompts())])
    ended = 0
    for k, prompt in enumerate(prompts()):
        got = [tokens(deltas[(str(k), rank)]) for rank in range(3)]
        assert got == reference(folder, prompt, beam, 3)
        ended += sum(output[-1] in END_TOKENS for output in got)
    assert ended >= 4, "too few hypotheses end for the test to mean much"


def test_beams_batch_with_other_requests_and_survive_preemption(folder: Path) -> None:
    beam = BeamParams(width=5, length_penalty=1.0)
    chosen = prompts()[4:8] + prompts()[12:16]
    expected = [reference(folder, prompt, beam, 3) for prompt in chosen]
    plain = greedy(prompts()[:4], max_tokens=MAX_TOKENS)
    alone = run(make_engine(folder), plain)
    engine = make_engine(
        folder, kv_cache_memory_bytes=20 * BYTES_PER_BLOCK, max_num_batched_tokens=48
    )
    requests = [beam_request(f"beam-{k}", prompt, beam) for k, prompt in enumerate(chosen)]
    deltas = run(engine, plain + requests)
    assert engine.stats().preemptions_total > 0
    for k in range(4):
        assert tokens(deltas[(str(k), 0)]) == tokens(alone[(str(k), 0)])
    for k, outputs in enumerate(expected):
        assert [tokens(deltas[(f"beam-{k}", rank)]) for rank in range(3)] == outputs


def test_more_beams_than_fit_at_once_still_finish(folder: Path) -> None:
    beam = BeamParams(width=12)
    prompt = (prompts()[15] * 3)[:238]
    expected = reference(folder, prompt, beam, 3)
    engine = make_engine(
        folder,
        kv_cache_memory_bytes=37 * 3 * BYTES_PER_BLOCK // 7,
        block_size=7,
        max_model_len=252,
        enable_prefix_caching=False,
    )
    deltas = run(engine, [beam_request("r", prompt, beam)])
    assert engine.stats().preemptions_total > 0
    assert [tokens(deltas[("r", rank)]) for rank in range(3)] == expected


def test_logprobs_of_beams_are_the_models_own(folder: Path) -> None:
    prompt = prompts()[6]
    deltas = run(make_engine(folder), [beam_request("r", prompt, BeamParams(width=4))])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for rank in range(3):
        (delta,) = deltas[("r", rank)]
        with torch.inference_mode():
            logits = model(torch.tensor([prompt + delta.token_ids])).logits[0]
        reference_rows = logits.log_softmax(-1)[len(prompt) - 1 : -1]
        assert delta.logprobs is not None
        for token, entry, row in zip(delta.token_ids, delta.logprobs, reference_rows, strict=True):
            assert entry.logprob == pytest.approx(row[token].item(), abs=1e-4)
            assert entry.top_token_ids == row.topk(2).indices.tolist()


def test_the_best_hypothesis_brings_the_prompts_logprobs(folder: Path) -> None:
    prompt = prompts()[6]
    params = SamplingParams(
        n=2, temperature=0.0, max_tokens=4, beam=BeamParams(width=3), prompt_logprobs=1
    )
    request = Request(request_id="r", prompt_token_ids=prompt, sampling_params=params)
    deltas = run(make_engine(folder), [request])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        rows = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    (best,), (second,) = deltas[("r", 0)], deltas[("r", 1)]
    assert best.prompt_logprobs is not None
    assert [entry.logprob for entry in best.prompt_logprobs] == pytest.approx(
        [row[token].item() for row, token in zip(rows, prompt[1:], strict=False)], abs=1e-4
    )
    assert second.prompt_logprobs is None


def candidates(*pairs: tuple[int, float]) -> BeamCandidates:
    return BeamCandidates(
        token_ids=[token for token, _ in pairs],
        scores=[score for _, score in pairs],
        logprobs=[score for _, score in pairs],
    )


def report(output: list[int], score: float, found: BeamCandidates) -> BeamReport:
    return BeamReport(
        output_token_ids=output, score=score, candidates=found, logprobs=None, output_logprobs=[]
    )


def test_a_stop_string_ends_a_hypothesis() -> None:
    search = BeamSearch(
        BeamParams(width=2),
        end_token_ids=frozenset({9}),
        ends_with_stop_string=lambda output: output[-2:] == [1, 5],
    )
    following = search.advance(
        [report([1], -0.5, candidates((5, -0.1), (6, -0.2), (7, -3.0)))], is_last_position=False
    )
    assert [c.token_id for c in following] == [6, 7]
    (hypothesis,) = search.hypotheses
    assert hypothesis.output_token_ids == [1, 5]
    assert hypothesis.finish_reason is FinishReason.STOP
    assert hypothesis.stop_token_id is None


def test_the_last_position_ends_every_beam_with_length() -> None:
    search = BeamSearch(
        BeamParams(width=2), end_token_ids=frozenset({9}), ends_with_stop_string=lambda _: False
    )
    reports = [report([1], -0.5, candidates((5, -0.1), (9, -0.2)))]
    assert search.advance(reports, is_last_position=True) == []
    assert search.is_finished
    assert [h.finish_reason for h in search.hypotheses] == [FinishReason.LENGTH, FinishReason.STOP]
