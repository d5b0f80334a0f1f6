"""A runner that can be predicted by hand, and that notices when blocks are mixed up.

It keeps, for every slot of the KV cache, the token and position that were written there. Before it
chooses a token it reads the sequence's whole context back through its block table, and refuses to
go on when a slot does not hold what the sequence's own tokens say.
"""

from collections.abc import Sequence as AbstractSequence

from models.engine.step_inputs import BeamCandidates, LayerInputs, StepInputs, StepOutputs
from models.engine.step_interrupt import StepInterrupted

VOCAB_SIZE = 97


def next_token(context: AbstractSequence[int], fork_seed: int = 0) -> int:
    """The token after a context: a function of all of it."""
    value = fork_seed % 89
    for position, token in enumerate(context):
        value = (value * 31 + token * 7 + position) % 7919
    return value % VOCAB_SIZE


def next_candidates(context: AbstractSequence[int], count: int) -> BeamCandidates:
    """Different tokens, and how likely: functions of the whole context."""
    first = next_token(context)
    scores = [-0.1 * (rank + 1) - first / 200 for rank in range(count)]
    token_ids = [(first + 7 * rank) % VOCAB_SIZE for rank in range(count)]
    return BeamCandidates(token_ids=token_ids, scores=scores, logprobs=scores)


class KVSimulator:
    """Satisfies `Runner`."""

    def __init__(
        self, *, num_blocks: int, block_size: int, max_model_len: int, num_layers_apart: int = 0
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.max_model_len = max_model_len
        self.vocab_size = VOCAB_SIZE
        self.eos_token_ids: frozenset[int] = frozenset({13})
        self.default_max_num_batched_tokens = 512
        self.min_prompt_tokens = 2
        self.num_layers_apart = num_layers_apart
        self._chunk: StepInputs | None = None  # the latest one that passes layers apart
        self.num_passed = 0  # of them
        self.num_chunks_apart = 0  # that passed all
        self.uses_seed = False
        self._slots: list[tuple[int, int] | None] = [None] * (num_blocks * block_size)
        self.num_computed_tokens = 0
        self.failing_prompt: list[int] | None = None
        self._is_interrupted = False
        self.num_interrupted = 0

    def describe(self) -> str:
        return "a simulated KV cache"

    def check_health(self) -> None:
        pass

    def interrupt(self) -> None:
        self._is_interrupted = True

    def forget_interrupt(self) -> None:
        self._is_interrupted = False

    def close(self) -> None:
        pass

    def execute(self, inputs: StepInputs) -> StepOutputs:
        self._copy_blocks(inputs.block_copies)
        if inputs.layers is not None:
            self.pass_layers(inputs.layers)
        if self._is_interrupted and inputs.is_interruptible:
            self._is_interrupted = False
            self._write(inputs, is_garbage=True)
            self.num_interrupted += 1
            raise StepInterrupted
        self._write(inputs)
        contexts = self._read_back(inputs)
        self.num_computed_tokens += len(inputs.token_ids)
        token_ids = []
        candidates = {}
        for index, row in enumerate(inputs.sampling_rows):
            context = contexts[row.logit_index]
            assert context == [*row.prompt_token_ids, *row.output_token_ids, *row.guessed_token_ids]
            token = next_token(context, row.seed if self.uses_seed else 0)
            while token in row.forbidden_token_ids:
                token = (token + 1) % VOCAB_SIZE
            token_ids.append(token)
            if row.num_candidates:
                candidates[index] = next_candidates(context, row.num_candidates)
        return StepOutputs(
            candidates=candidates,
            token_ids=token_ids,
            logprobs=[None] * len(token_ids),
            prompt_logprobs=[[] for _ in inputs.prompt_logprobs_rows],
            failed_rows=frozenset(
                index
                for index, row in enumerate(inputs.sampling_rows)
                if row.prompt_token_ids == self.failing_prompt
            ),
        )

    def pass_layers(self, layers: LayerInputs) -> None:
        """What a chunk writes is of use when it has passed the last layer, and not before."""
        if layers.first_layer == 0:
            self._chunk, self.num_passed = layers.chunk, 0
        assert self._chunk is layers.chunk
        assert self.num_passed == layers.first_layer < layers.stop_layer <= self.num_layers_apart
        self.num_passed = layers.stop_layer
        is_complete = self.num_passed == self.num_layers_apart
        self._write(self._chunk, is_garbage=not is_complete)
        if is_complete:
            self._read_back(self._chunk)
            self.num_computed_tokens += len(self._chunk.token_ids)
            self.num_chunks_apart += 1
            self._chunk = None

    def _copy_blocks(self, copies: list[tuple[int, int]]) -> None:
        size = self.block_size
        sources = [self._slots[src * size : (src + 1) * size] for src, _ in copies]
        for (_, dst), content in zip(copies, sources, strict=True):
            self._slots[dst * size : (dst + 1) * size] = content

    def _write(self, inputs: StepInputs, *, is_garbage: bool = False) -> None:
        assert len(set(inputs.slot_mapping)) == len(inputs.slot_mapping), "two writers of a slot"
        for token, position, slot in zip(
            inputs.token_ids, inputs.positions, inputs.slot_mapping, strict=True
        ):
            self._slots[slot] = (-1, position) if is_garbage else (token, position)

    def _read_back(self, inputs: StepInputs) -> dict[int, list[int]]:
        """For the last query token of each sequence: its context as the blocks hold it."""
        contexts = {}
        end = 0
        for query_len, context_len, table in zip(
            inputs.query_lens, inputs.context_lens, inputs.block_tables, strict=True
        ):
            end += query_len
            context = []
            for position in range(context_len):
                block = table[position // self.block_size]
                entry = self._slots[block * self.block_size + position % self.block_size]
                assert entry is not None, "attends to a slot that was never written"
                assert entry[1] == position, "attends to another position's KV"
                context.append(entry[0])
            assert context[context_len - query_len :] == inputs.token_ids[end - query_len : end]
            contexts[end - 1] = context
        return contexts
