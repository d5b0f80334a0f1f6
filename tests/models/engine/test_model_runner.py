from pathlib import Path

import pytest
import torch

from cluster.config import EngineConfig
from cluster.types import SamplingParams
from models.engine import model_runner
from models.engine.model_runner import ModelRunner, padded_size
from models.engine.runner import Runner
from models.engine.step_inputs import PromptLogprobsRow, SamplingRow, StepInputs, StepOutputs
from tests.models.conftest import MakeCheckpoint
from tests.models.step_driver import (
    StepDriver,
    full_distribution,
    greedy_row,
    random_tokens,
    reference_logprobs,
)

SMALL = EngineConfig(kv_cache_memory_bytes=2**20, block_size=4, max_num_seqs=4)


@pytest.fixture(scope="module")
def checkpoint(make_checkpoint: MakeCheckpoint) -> Path:
    return make_checkpoint("llama")


@pytest.fixture
def runner(checkpoint: Path) -> ModelRunner:
    return ModelRunner(checkpoint, SMALL, device="cpu")


def prefill(
    runner: ModelRunner,
    tokens: list[int],
    table: list[int],
    *,
    sampling_rows: list[SamplingRow],
    prompt_logprobs_rows: list[PromptLogprobsRow] | None = None,
) -> StepOutputs:
    size = runner.block_size
    return runner.execute(
        StepInputs(
            token_ids=tokens,
            positions=list(range(len(tokens))),
            slot_mapping=[table[p // size] * size + p % size for p in range(len(tokens))],
            query_lens=[len(tokens)],
            context_lens=[len(tokens)],
            block_tables=[table],
            sampling_rows=sampling_rows,
            prompt_logprobs_rows=prompt_logprobs_rows or [],
        )
    )


def test_it_is_a_runner_and_says_what_it_holds(runner: ModelRunner) -> None:
    as_runner: Runner = runner
    assert as_runner.vocab_size == 257
    assert as_runner.eos_token_ids == frozenset({2})
    assert as_runner.max_model_len == 512
    assert as_runner.block_size == 4
    # 2 layers, keys and values, 2 heads, 16 wide, 4 bytes: 512 bytes per token
    assert as_runner.num_blocks == 2**20 // (512 * 4) == 512
    assert as_runner.describe() == (
        f"LlamaForCausalLM in float32 on cpu ({torch.get_num_threads()} threads); context limit "
        "512 tokens; KV cache 512 blocks of 4 tokens = 2,048 tokens, 0.00 GiB"
    )


def test_greedy_generation_equals_transformers_token_for_token(checkpoint: Path) -> None:
    driver = StepDriver(checkpoint)
    prompts = [random_tokens(n, seed=n) for n in (7, 20, 33)]
    sequences = [driver.add(prompt) for prompt in prompts]
    for sequence in sequences:
        outputs = driver.step((sequence, len(sequence.token_ids)))
        sequence.token_ids.append(outputs.token_ids[0])
    for _ in range(24):
        outputs = driver.step(*((sequence, 1) for sequence in sequences))
        for sequence, token_id in zip(sequences, outputs.token_ids, strict=True):
            sequence.token_ids.append(token_id)
    for prompt, sequence in zip(prompts, sequences, strict=True):
        expected = reference_logprobs(checkpoint, sequence.token_ids[:-1]).argmax(-1)
        assert sequence.token_ids[len(prompt) :] == expected[len(prompt) - 1 :].tolist()


def test_forks_sample_from_one_row_and_continue_on_copied_blocks(checkpoint: Path) -> None:
    """The prompt fills one block and part of the next; the fork owns a copy of the latter."""
    driver = StepDriver(checkpoint, block_size=4)
    prompt = random_tokens(6)
    original = driver.add([*prompt, 10, 11])
    driver.step((original, 6))
    fork = driver.add([*prompt, 20, 21])
    fork.num_computed, fork.logprobs = 6, list(original.logprobs)
    fork.block_table = [original.block_table[0], driver.free_blocks.pop()]
    driver.runner.execute(
        StepInputs(
            token_ids=[10, 20],
            positions=[6, 6],
            slot_mapping=[s.block_table[1] * 4 + 2 for s in (original, fork)],
            query_lens=[1, 1],
            context_lens=[7, 7],
            block_tables=[original.block_table, fork.block_table],
            sampling_rows=[],
            block_copies=[(original.block_table[1], fork.block_table[1])],
        )
    )
    for sequence in (original, fork):
        sequence.num_computed = 7
        driver.step((sequence, 1))
        expected = reference_logprobs(checkpoint, sequence.token_ids)
        torch.testing.assert_close(sequence.logprobs[-1], expected[-1], atol=1e-4, rtol=0)


def test_rows_may_name_any_position_and_the_same_one_twice(
    runner: ModelRunner, checkpoint: Path
) -> None:
    tokens = random_tokens(9)
    outputs = prefill(
        runner, tokens, [5, 1, 9], sampling_rows=[greedy_row(i, i + 1) for i in (8, 3, 8)]
    )
    best = reference_logprobs(checkpoint, tokens).argmax(-1).tolist()
    assert outputs.token_ids == [best[8], best[3], best[8]]
    assert outputs.failed_rows == frozenset()


def test_a_step_without_rows_chooses_nothing(runner: ModelRunner) -> None:
    outputs = prefill(runner, random_tokens(5), [0, 1], sampling_rows=[])
    assert (outputs.token_ids, outputs.logprobs, outputs.prompt_logprobs) == ([], [], [])


def test_prompt_logprobs_in_small_parts_equal_transformers(
    runner: ModelRunner, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_runner, "MAX_PROMPT_LOGITS", 3 * 257)
    tokens = random_tokens(12)
    rows = [
        PromptLogprobsRow(first_index=0, target_token_ids=tokens[1:], num_top=257),
        PromptLogprobsRow(first_index=4, target_token_ids=tokens[5:7], num_top=0),
    ]
    outputs = prefill(runner, tokens, [3, 2, 1], sampling_rows=[], prompt_logprobs_rows=rows)
    expected = reference_logprobs(checkpoint, tokens)
    everything, some = outputs.prompt_logprobs
    assert len(everything) == 11
    for position, item in enumerate(everything):
        full = full_distribution(item, 257)
        torch.testing.assert_close(full, expected[position], atol=1e-4, rtol=0)
        wanted = expected[position, tokens[position + 1]].item()
        assert item.logprob == pytest.approx(wanted, abs=1e-4)
    assert [item.logprob for item in some] == [item.logprob for item in everything[4:6]]
    assert some[0].top_token_ids == []


def test_a_sequence_whose_logits_are_not_finite_fails_alone(
    make_checkpoint: MakeCheckpoint,
) -> None:
    checkpoint = make_checkpoint("llama", seed=7)
    driver = StepDriver(checkpoint)
    sick, healthy = driver.add([5] * 3), driver.add(random_tokens(6))
    driver.runner._decoder.embedding_VM[5] = float("nan")
    outputs = driver.runner.execute(
        StepInputs(
            token_ids=[5, *healthy.token_ids],
            positions=[0, *range(6)],
            slot_mapping=[0, *range(8, 14)],
            query_lens=[1, 6],
            context_lens=[1, 6],
            block_tables=[[0], [2, 3]],
            sampling_rows=[greedy_row(0, 1), greedy_row(6, 6)],
        )
    )
    assert outputs.failed_rows == frozenset({0})
    assert outputs.token_ids[1] == reference_logprobs(checkpoint, healthy.token_ids)[-1].argmax()
    # Its block goes to somebody else, who starts a sequence in it and must not notice.
    driver.free_blocks = [9, 8, 7, 6, 0]
    driver.finish(healthy, 1)
    expected = reference_logprobs(checkpoint, healthy.token_ids)
    torch.testing.assert_close(torch.stack(healthy.logprobs), expected, atol=1e-4, rtol=0)
    assert sick.num_computed == 0


def test_random_weights_need_only_the_config(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    runner = ModelRunner(tmp_path, SMALL, device="cpu", random_weights=True, dtype="bfloat16")
    params = SamplingParams(temperature=0.0, logprobs=1)
    row = SamplingRow(
        logit_index=3,
        params=params,
        seed=0,
        position=4,
        prompt_token_ids=(),
        output_token_ids=(),
    )
    outputs = prefill(runner, random_tokens(4), [0], sampling_rows=[row])
    assert outputs.failed_rows == frozenset()
    assert outputs.logprobs[0] is not None


def test_a_context_limit_bounds_the_plan(checkpoint: Path) -> None:
    config = SMALL.model_copy(update={"max_model_len": 64})
    runner = ModelRunner(checkpoint, config, device="cpu")
    assert (runner.max_model_len, runner.num_blocks) == (64, 4 * 16)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"dtype": "int4"}, "dtype 'int4' is not one of auto, float32, bfloat16, float16"),
        ({"device": "tpu"}, "device 'tpu' is not one of auto, cpu, cuda"),
    ],
)
def test_unknown_dtypes_and_devices_are_refused(
    checkpoint: Path, kwargs: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ModelRunner(checkpoint, SMALL, **({"device": "cpu"} | kwargs))


def test_a_limit_beyond_the_checkpoints_is_refused_before_weights_are_read(
    tmp_path: Path, checkpoint: Path
) -> None:
    (tmp_path / "config.json").write_bytes((checkpoint / "config.json").read_bytes())
    config = SMALL.model_copy(update={"max_model_len": 513})
    with pytest.raises(ValueError, match=r"max_model_len \(513\) exceeds"):
        ModelRunner(tmp_path, config, device="cpu")


def test_threads_are_set_as_configured(checkpoint: Path) -> None:
    before = torch.get_num_threads()
    try:
        ModelRunner(checkpoint, SMALL.model_copy(update={"num_threads": 1}), device="cpu")
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_steps_are_padded_to_few_sizes_with_little_waste() -> None:
    sizes = {count: padded_size(count) for count in range(1, 2049)}
    assert all(size >= count for count, size in sizes.items())
    assert all(size - count <= min(63, max(1, count // 2)) for count, size in sizes.items())
    assert sizes[1] == 1
    assert len(set(sizes.values())) < 60
