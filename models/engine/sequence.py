"""The engine's mutable state of one generation. Knows tokens and counts, not tensors or blocks."""

import hashlib
import logging
from array import array
from enum import StrEnum

from cluster.types import FinishReason, Request, SamplingParams, TokenLogprobs
from models.engine.outlet import Outlet
from models.engine.randomness import derive_seed
from models.engine.sequence_guesses import SequenceGuesses
from models.engine.step_inputs import SamplingRow
from models.grammar.compiler import GrammarMatcher, GrammarStepError

_NOBODY = Outlet()

logger = logging.getLogger(__name__)


class SequenceStatus(StrEnum):
    WAITING = "waiting"  # owns no blocks
    PARKED = "parked"  # a preempted beam with nothing to compute until its group advances
    RUNNING = "running"
    FINISHED = "finished"  # owns no blocks


class Sequence:
    """One of a request's n continuations of its prompt.

    The prompt's list is shared between forks and never changed. A sequence whose request wants
    n > 1 runs alone until its prompt is computed and then forks (`num_pending_forks`).
    """

    __slots__ = (
        "_block_hashes",
        "adapter",
        "adapter_slot",
        "adapter_version",
        "arrival",
        "block_table",
        "cumulative_logprob",
        "end_token_ids",
        "guesses",
        "index",
        "is_plain",
        "key",
        "last_token_id",
        "matcher",
        "max_num_tokens",
        "next_block_at",
        "num_cached_tokens",
        "num_computed_tokens",
        "num_pending_forks",
        "num_published_blocks",
        "num_tokens",
        "outlet",
        "output_logprobs",
        "output_token_ids",
        "params",
        "priority",
        "prompt_logprobs",
        "prompt_token_ids",
        "request",
        "request_id",
        "sampling_row",
        "seed",
        "status",
        "tenant",
    )

    def __init__(
        self,
        request: Request,
        *,
        arrival: int,
        seed: int,
        matcher: GrammarMatcher | None = None,
    ) -> None:
        self.request = request
        self.request_id = request.request_id
        self.params: SamplingParams = request.sampling_params
        self.priority = request.priority
        self.tenant = request.tenant
        self.arrival = arrival
        self.index = 0
        self.adapter = request.adapter
        # Where the adapter lies, and which state of its files; valid while the sequence runs.
        self.adapter_slot: int | None = None
        self.adapter_version = b""
        self.matcher = matcher  # what the output so far lets its grammar allow next
        self.seed = seed
        self.prompt_token_ids = request.prompt_token_ids
        self.output_token_ids: list[int] = []  # grows by `append`
        self.num_tokens = len(request.prompt_token_ids)  # of prompt and output
        self.last_token_id = request.prompt_token_ids[-1]
        # What ends it; the scheduler, which knows the model's limits, sets both.
        self.end_token_ids: frozenset[int] = frozenset()
        self.max_num_tokens = 0
        self.status = SequenceStatus.WAITING
        self.block_table: list[int] = []
        # The token at this position fills the last block: up to there, nothing has to be asked of
        # the block manager. 0: ask.
        self.next_block_at = 0
        # Who is told of its tokens, and under which key; set by whoever made it.
        self.outlet = _NOBODY
        self.key: object = None
        # Past its first token, with one row to sample and nothing to tell but the token.
        self.is_plain = False
        self.sampling_row: SamplingRow | None = None  # made for its first step, and kept
        # Made where it may guess; see `models.engine.speculation`.
        self.guesses: SequenceGuesses | None = None
        self.num_computed_tokens = 0
        self.num_cached_tokens = 0
        self.num_published_blocks = 0  # leading blocks offered for prefix reuse
        beam = self.params.beam
        self.num_pending_forks = (self.params.n if beam is None else beam.width) - 1
        self.cumulative_logprob = 0.0  # of the output; of beams, their score
        self.output_logprobs: list[TokenLogprobs] = []  # of beams, whose deltas come at the end
        self.prompt_logprobs: list[TokenLogprobs] = []  # until the first delta takes them
        self._block_hashes: list[bytes] = []

    @property
    def has_plain_params(self) -> bool:
        """Whether nothing of a token is of interest but the token."""
        return self.matcher is None and self.params.logprobs is None

    @property
    def order(self) -> tuple[int, int, int]:
        """Smaller is served earlier and preempted later."""
        return (self.priority, self.arrival, self.index)

    @property
    def num_prompt_tokens(self) -> int:
        return len(self.prompt_token_ids)

    @property
    def num_slots(self) -> int:
        """Running sequences that this one is or will become."""
        return 1 + self.num_pending_forks

    @property
    def wants_prompt_logprobs(self) -> bool:
        """Whether every prompt position has to be computed for its logits."""
        return self.params.prompt_logprobs is not None and not self.output_token_ids

    def try_accept(self, token_id: int) -> bool:
        """Advance its grammar; False when that went over its limits."""
        if self.matcher is None:
            return True
        try:
            self.matcher.accept(token_id)
        except GrammarStepError as error:
            logger.warning(
                "request %s: its grammar gave up: %s",
                self.request_id,
                error,
                extra={"fields": {"request_id": self.request.http_request_id}},
            )
            return False
        return True

    def append(self, token_id: int) -> None:
        """One more token of output."""
        self.output_token_ids.append(token_id)
        self.last_token_id = token_id
        self.num_tokens += 1

    def resume(self, index: int, token_ids: list[int]) -> None:
        """Be the request's sequence of that index, with this much of its output, as if it had been
        preempted here.

        Raises:
            GrammarStepError: the output goes over the limits of its grammar.
        """
        self.index = index
        self.num_pending_forks = 0
        for token_id in token_ids:
            self.append(token_id)
            if self.matcher is not None:
                self.matcher.accept(token_id)

    def limit_to(self, max_num_tokens: int) -> None:
        """End it by length with this many tokens, prompt and output, if not before."""
        longest = self.params.max_tokens
        if longest is not None:
            max_num_tokens = min(max_num_tokens, self.num_prompt_tokens + longest)
        self.max_num_tokens = max_num_tokens

    def ending(self, token_id: int) -> tuple[FinishReason | None, int | None]:
        """Why the sequence ends with its last token, and the stop token that did it."""
        if token_id in self.end_token_ids:
            return FinishReason.STOP, token_id
        if self.matcher is not None and self.matcher.is_finished:
            return FinishReason.STOP, None
        if self.num_tokens >= self.max_num_tokens:
            return FinishReason.LENGTH, None
        return None, None

    def take_prompt_logprobs(self) -> list[TokenLogprobs] | None:
        """The prompt's logprobs, if asked for; they leave with the request's first delta."""
        if self.params.prompt_logprobs is None or self.index > 0:
            return None
        taken, self.prompt_logprobs = self.prompt_logprobs, []
        return taken

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens start … stop-1, counted over prompt and output."""
        num_prompt = len(self.prompt_token_ids)
        if start >= num_prompt:
            return self.output_token_ids[start - num_prompt : stop - num_prompt]
        if stop <= num_prompt:
            return self.prompt_token_ids[start:stop]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - num_prompt]

    def block_hashes(self, num_blocks: int, block_size: int) -> list[bytes]:
        """Chained hashes of the first `num_blocks` blocks; all their tokens must be known.

        A hash stands for its block's tokens and everything before them, under the request's
        cache salt and with its adapter, so equal hashes mean equal KV.
        """
        hashes = self._block_hashes
        while len(hashes) < num_blocks:
            start = len(hashes) * block_size
            parent = hashes[-1] if hashes else self._root_hash()
            content = array("I", self.tokens(start, start + block_size)).tobytes()
            hashes.append(_digest(parent + content))
        return hashes[:num_blocks]

    def _root_hash(self) -> bytes:
        salt = _digest(self.request.cache_salt.encode())
        return _digest(salt + self.adapter_version) if self.adapter else salt

    def use_adapter(self, slot: int, version: bytes) -> None:
        """Its adapter lies there. Of another version are the hashes that were made before."""
        self.adapter_slot = slot
        if version != self.adapter_version:
            self.adapter_version = version
            self._block_hashes.clear()

    def fork(self, index: int) -> "Sequence":
        """A copy that goes its own way from here. Its caller takes references on the blocks, which
        are now shared: neither may write to them unasked.
        """
        self.next_block_at = 0
        other = Sequence(
            self.request,
            arrival=self.arrival,
            seed=derive_seed(self.seed, index),
            matcher=None if self.matcher is None else self.matcher.fork(),
        )
        other.index = index
        other.adapter_slot = self.adapter_slot
        other.adapter_version = self.adapter_version
        other.outlet = self.outlet
        other.key = self.key
        other.output_token_ids = list(self.output_token_ids)
        other.num_tokens = self.num_tokens
        other.last_token_id = self.last_token_id
        other.end_token_ids = self.end_token_ids
        other.max_num_tokens = self.max_num_tokens
        other.status = self.status
        other.block_table = list(self.block_table)
        other.num_computed_tokens = self.num_computed_tokens
        other.num_cached_tokens = self.num_cached_tokens
        other.num_published_blocks = self.num_published_blocks
        other.num_pending_forks = 0
        other.cumulative_logprob = self.cumulative_logprob
        other.output_logprobs = list(self.output_logprobs)
        other._block_hashes = list(self._block_hashes)
        return other


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()
