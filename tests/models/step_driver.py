"""Runs sequences through a `ModelRunner` step by step, with block tables scattered on purpose."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

from cluster.config import EngineConfig
from cluster.types import SamplingParams, TokenLogprobs
from models.engine.model_runner import ModelRunner
from models.engine.step_inputs import PromptLogprobsRow, SamplingRow, StepInputs, StepOutputs

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class DrivenSequence:
    """Token ids, of which the first `num_computed` have their keys and values in the cache."""

    token_ids: list[int]
    block_table: list[int]
    num_computed: int = 0
    adapter_slot: int | None = None
    # Of its tokens, where they are not 0, 1, 2 …
    positions: Sequence[int] = range(2**31)
    # The logprobs of all tokens at every position that was computed.
    logprobs: list[torch.Tensor] = field(default_factory=list)


class StepDriver:
    """Owns the blocks and builds `StepInputs`; every position's full distribution is recorded."""

    def __init__(
        self,
        checkpoint_dir: Path,
        *,
        block_size: int = 4,
        dtype: str = "auto",
        quantization: str = "auto",
        deterministic: bool = False,
        engine_config: EngineConfig | None = None,
        seed: int = 0,
    ) -> None:
        """`engine_config`: instead of `block_size` and `deterministic`."""
        config = engine_config or EngineConfig(
            block_size=block_size,
            kv_cache_memory_bytes=32 * 2**20,
            max_num_seqs=32,
            deterministic=deterministic,
        )
        self.runner = ModelRunner(
            checkpoint_dir, config, dtype=dtype, device="cpu", quantization=quantization
        )
        self.free_blocks = list(range(self.runner.num_blocks))
        random.Random(seed).shuffle(self.free_blocks)

    def add(self, token_ids: Sequence[int], adapter_slot: int | None = None) -> DrivenSequence:
        return DrivenSequence(list(token_ids), [], adapter_slot=adapter_slot)

    def step(self, *chunks: tuple[DrivenSequence, int]) -> StepOutputs:
        """Compute the next n tokens of each given sequence, all in one step."""
        ordered = sorted(chunks, key=lambda chunk: chunk[1] > 1)
        size = self.runner.block_size
        token_ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        for sequence, num_tokens in ordered:
            end = sequence.num_computed + num_tokens
            while len(sequence.block_table) * size < end:
                sequence.block_table.append(self.free_blocks.pop())
            span = range(sequence.num_computed, end)
            token_ids += sequence.token_ids[span.start : span.stop]
            positions += sequence.positions[span.start : span.stop]
            slots += [sequence.block_table[p // size] * size + p % size for p in span]
        assert len(token_ids) == len(positions), "a sequence ran out of tokens"
        vocab_size = self.runner.vocab_size
        adapter_slots = [s.adapter_slot for s, _ in ordered]
        outputs = self.runner.execute(
            StepInputs(
                token_ids=token_ids,
                positions=positions,
                slot_mapping=slots,
                query_lens=[n for _, n in ordered],
                context_lens=[s.num_computed + n for s, n in ordered],
                block_tables=[s.block_table for s, _ in ordered],
                adapter_slots=adapter_slots if any(s is not None for s in adapter_slots) else [],
                sampling_rows=[
                    greedy_row(sum(n for _, n in ordered[: i + 1]) - 1, s.num_computed + n)
                    for i, (s, n) in enumerate(ordered)
                ],
                prompt_logprobs_rows=[
                    PromptLogprobsRow(
                        first_index=0,
                        target_token_ids=[0] * len(token_ids),
                        num_top=vocab_size,
                    )
                ],
            )
        )
        rows = [full_distribution(item, vocab_size) for item in outputs.prompt_logprobs[0]]
        for sequence, num_tokens in ordered:
            sequence.logprobs += rows[:num_tokens]
            del rows[:num_tokens]
            sequence.num_computed += num_tokens
        return outputs

    def finish(self, sequence: DrivenSequence, *chunk_sizes: int) -> None:
        """Compute what is left, in chunks of these sizes (the last one repeats)."""
        sizes = list(chunk_sizes)
        while sequence.num_computed < len(sequence.token_ids):
            size = sizes.pop(0) if len(sizes) > 1 else sizes[0]
            self.step((sequence, min(size, len(sequence.token_ids) - sequence.num_computed)))


def greedy_row(logit_index: int, position: int) -> SamplingRow:
    return SamplingRow(
        logit_index=logit_index,
        params=GREEDY,
        seed=0,
        position=position,
        prompt_token_ids=(),
        output_token_ids=(),
    )


def full_distribution(item: TokenLogprobs, vocab_size: int) -> torch.Tensor:
    row = torch.empty(vocab_size)
    row[torch.tensor(item.top_token_ids)] = torch.tensor(item.top_logprobs)
    return row


def reference_logprobs(
    checkpoint_dir: Path, token_ids: Sequence[int], *, dtype: torch.dtype = torch.float32
) -> torch.Tensor:
    """What transformers computes for the whole sequence at once: float32 [tokens, vocabulary]."""
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint_dir, dtype=dtype, attn_implementation="eager"
    )
    with torch.inference_mode():
        logits = model(torch.tensor([list(token_ids)])).logits[0]
    return logits.float().log_softmax(-1)


def random_tokens(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(3, 257), k=num_tokens)
