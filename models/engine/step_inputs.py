"""What one step computes, as plain integers: built once by the scheduler, the same for every rank.

Legend: T = tokens in the step, S = sequences, R = rows that are sampled.
"""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from cluster.types import SamplingParams, TokenLogprobs


@dataclass(slots=True, kw_only=True)
class SamplingRow:
    """One token to be chosen. A sequence has one row as long as it lives: what changes from step to
    step (the two places, what is forbidden) is set anew for each.
    """

    params: SamplingParams
    seed: int  # unsigned 64 bits
    logit_index: int = 0  # 0 … T-1; rows of forks name the same one
    position: int = 0  # of the token to be chosen: the counter of its random number
    # Both lists belong to the sequence: read them, do not keep them.
    prompt_token_ids: AbstractSequence[int]
    output_token_ids: AbstractSequence[int]
    guessed_token_ids: AbstractSequence[int] = ()  # taken to follow the output here
    forbidden_token_ids: tuple[int, ...] = ()  # stop tokens before min_tokens
    num_candidates: int = 0  # beam search: the best tokens instead of one; 0: off
    mask_row: int | None = None  # row of StepInputs.grammar_masks; None: every token is allowed


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptLogprobsRow:
    """A run of prompt positions whose next tokens' logprobs are wanted."""

    first_index: int  # 0 … T-1: this position predicts target_token_ids[0], and so on
    target_token_ids: AbstractSequence[int]
    num_top: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInputs:
    """Layers of a chunk that passes a few of them in each step; see `LayeredChunk`."""

    chunk: "StepInputs"  # one sequence, nothing chosen
    first_layer: int  # 0: it begins
    stop_layer: int  # those below it


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInputs:
    """Sequences with one query token come first, the others (prefill) after them, shorter ones
    first. A sequence that guesses its next tokens is there once for each of them and for the one
    before, on the same blocks."""

    token_ids: list[int]  # T
    positions: list[int]  # T
    slot_mapping: list[int]  # T: block * block_size + offset, where each token's KV goes
    query_lens: list[int]  # S: tokens of each sequence in this step
    context_lens: list[int]  # S: tokens whose KV exists after this step
    block_tables: list[list[int]]  # S: the sequences' own lists; read them, do not keep them
    sampling_rows: list[SamplingRow]  # R
    # Copies of whole blocks (source, destination), done before anything is written.
    block_copies: list[tuple[int, int]] = field(default_factory=list)
    is_interruptible: bool = False  # see `Runner.interrupt`
    prompt_logprobs_rows: list[PromptLogprobsRow] = field(default_factory=list)
    # Waits for `grammar_masks`, which are being filled while the step is computed.
    read_grammar_masks: Callable[[], NDArray[np.int32]] | None = None
    # S: where each sequence's adapter lies; None: it has none. Empty: no sequence has one.
    adapter_slots: list[int | None] = field(default_factory=list)
    layers: LayerInputs | None = None  # beside these tokens, of another chunk

    @property
    def grammar_masks(self) -> NDArray[np.int32] | None:
        """What grammars allow: G × ceil(vocabulary / 32) words, bit i of word w for token
        32 w + i.
        """
        return None if self.read_grammar_masks is None else self.read_grammar_masks()


@dataclass(frozen=True, slots=True, kw_only=True)
class BeamCandidates:
    """The best next tokens of one beam, best first. Their scores are logprobs with logit_bias,
    penalties and bans applied; without those they are the logprobs.
    """

    token_ids: list[int]
    scores: list[float]
    logprobs: list[float]  # of the raw distribution


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutputs:
    """What the step chose."""

    token_ids: list[int]  # R
    logprobs: list[TokenLogprobs | None]  # R: None where the row asked for none
    prompt_logprobs: list[list[TokenLogprobs]]  # one list per PromptLogprobsRow
    # Rows (0 … R-1) whose logits were not finite: they have no token, and their sequences end.
    failed_rows: frozenset[int] = frozenset()
    # By row, for the rows that asked for candidates; what `token_ids` says of them means nothing.
    candidates: dict[int, BeamCandidates] = field(default_factory=dict)
