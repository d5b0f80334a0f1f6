"""Continuous batching: requests in, deltas out, one step at a time. Synchronous, single thread."""

import logging
import secrets
import time
import weakref
from collections.abc import Callable, Mapping

import msgspec

from cluster.config import EngineConfig
from cluster.errors import BadRequestError, ServingError, ValidationError
from cluster.types import GRAMMAR_FIELD, PRIORITY_BATCH, GrammarSpec, Request, SamplingParams
from models.engine.adapter_slots import AdapterSlots
from models.engine.batch import Batch, build_step_inputs
from models.engine.block_manager import BlockManager
from models.engine.deltas import StepDeltas
from models.engine.grammar_masks import GrammarMasks
from models.engine.launched_step import LaunchingRunner
from models.engine.outlet import Outlet
from models.engine.randomness import derive_seed
from models.engine.runner import Runner
from models.engine.scheduler import Scheduler
from models.engine.scheduler_limits import SchedulerLimits
from models.engine.sequence import Sequence
from models.engine.step_inputs import StepOutputs
from models.engine.step_interrupt import StepInterrupted
from models.engine.step_overlap import StepOverlap
from models.grammar.compiler import (
    CompiledGrammar,
    GrammarCompiler,
    GrammarError,
    GrammarStepError,
)

logger = logging.getLogger(__name__)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot after a step. Totals count since the engine started."""

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_waiting_prefill_tokens: int = 0
    num_free_blocks: int = 0
    num_blocks: int = 0
    num_steps: int = 0
    prompt_tokens_total: int = 0
    cached_prompt_tokens_total: int = 0
    generation_tokens_total: int = 0
    preemptions_total: int = 0
    spec_decode_drafts_total: int = 0  # guesses; tokens of them; those that came true
    spec_decode_draft_tokens_total: int = 0
    spec_decode_accepted_tokens_total: int = 0
    last_step_at_s: float = 0.0  # time.monotonic() of the last step's end
    loaded_adapters: list[str] = []

    @property
    def kv_cache_usage(self) -> float:
        """Owned blocks as a share of all, 0 … 1."""
        return 1 - self.num_free_blocks / self.num_blocks if self.num_blocks else 0.0


class Engine:
    """Five nouns: a `Sequence` per continuation, whose blocks the `BlockManager` counts, which the
    `Scheduler` puts into steps, which a `Runner` computes.
    """

    def __init__(
        self,
        runner: Runner,
        config: EngineConfig,
        *,
        token_bytes: Callable[[int], bytes] | None = None,
        grammar_compiler: GrammarCompiler | None = None,
        adapters: AdapterSlots | None = None,
    ) -> None:
        """`token_bytes` spells tokens, for stop strings in beam search; requests with a grammar
        need a compiler, and those with an adapter slots. Without them such requests are refused.

        Raises:
            ValueError: the limits contradict each other.
        """
        self._runner = runner
        self.max_model_len = runner.max_model_len
        self.vocab_size = runner.vocab_size
        budget = config.max_num_batched_tokens
        if budget is None:
            budget = max(runner.default_max_num_batched_tokens, config.max_num_seqs)
        self._limits = SchedulerLimits(
            max_num_seqs=config.max_num_seqs,
            max_step_rows=config.max_step_rows,
            max_num_batched_tokens=budget,
            max_model_len=runner.max_model_len,
            enable_prefix_caching=config.enable_prefix_caching,
            max_batch_slowdown=config.max_batch_slowdown,
            max_prompt_slowdown=config.max_prompt_slowdown,
            min_prompt_tokens=runner.min_prompt_tokens,
            num_layers_apart=runner.num_layers_apart,
        )
        if runner.num_blocks * runner.block_size < runner.max_model_len:
            raise ValueError(
                f"{runner.num_blocks} blocks of {runner.block_size} tokens cannot hold one "
                f"sequence of max_model_len ({runner.max_model_len})"
            )
        self._blocks = BlockManager(runner.num_blocks, runner.block_size)
        self._adapters = adapters or AdapterSlots()
        self._scheduler = Scheduler(
            self._blocks,
            self._limits,
            eos_token_ids=runner.eos_token_ids,
            adapters=self._adapters,
            token_bytes=token_bytes,
            speculative_config=config.speculative_config,
        )
        self._overlap: StepOverlap | None = None
        if isinstance(runner, LaunchingRunner) and runner.overlaps_steps:
            self._overlap = StepOverlap(runner, self._scheduler.try_reserve_next)
        self._can_spell = token_bytes is not None
        self._grammar_compiler = grammar_compiler
        self._grammar_masks = GrammarMasks(runner.vocab_size)
        self._outlet = Outlet()
        self._outlets = weakref.WeakSet[Outlet]()  # of all requests that there are
        self._found_nothing = False  # to compute, in the last step
        self._num_arrivals = 0
        self._num_steps = 0
        self._last_step_at_s = 0.0
        logger.info("engine: %s", self.describe())

    def describe(self) -> str:
        """One line for a person: the model's and the scheduler's limits."""
        limits = self._limits
        return (
            f"{self._runner.describe()}; up to {limits.max_num_seqs} sequences and "
            f"{limits.max_num_batched_tokens} tokens per step"
        )

    @property
    def start_seconds(self) -> Mapping[str, float]:
        """How long the parts of the runner's construction took."""
        return self._runner.start_seconds

    @property
    def has_unfinished(self) -> bool:
        return self._scheduler.has_unfinished

    @property
    def is_stalled(self) -> bool:
        """Whether all that there is waits for adapters that are being read: no step is of use
        before the listener is called, or something is added or aborted."""
        return self._found_nothing and self._adapters.is_loading and not self._adapters.has_news

    def set_adapter_listener(self, on_news: Callable[[], None]) -> None:
        """`on_news` is called on a thread when an adapter was read, or could not be."""
        self._adapters.set_listener(on_news)

    def wait_for_adapters(self) -> None:
        """Where the engine is stalled: until it is not."""
        self._adapters.wait()

    def compile_grammar(self, spec: GrammarSpec) -> CompiledGrammar:
        """Compile what an output must match: a matter of milliseconds to seconds, so not in the
        thread that steps. Safe in any thread.

        Raises:
            ValidationError: it cannot be honoured; the message says where and why.
        """
        if self._grammar_compiler is None:
            raise ValidationError.of(
                GRAMMAR_FIELD,
                "this model has no end-of-sequence token, so its output cannot be guided",
            )
        try:
            return self._grammar_compiler.compile(spec)
        except GrammarError as error:
            raise ValidationError.of(GRAMMAR_FIELD, str(error), kind="grammar_error") from error

    def add_request(
        self,
        request: Request,
        grammar: CompiledGrammar | None = None,
        *,
        outlet: Outlet | None = None,
        key: object = None,
    ) -> None:
        """Queue a request for the steps to come. Its grammar is compiled here if it was not before.
        `outlet` gets its plain tokens under `key`; without one, the key is the request's id.

        Raises:
            BadRequestError, ValidationError: it can never be served; nothing was queued.
        """
        self.check_request(request)
        seed = request.sampling_params.seed
        seed = secrets.randbits(64) if seed is None else seed % 2**64
        spec = request.sampling_params.grammar
        if spec is not None and grammar is None:
            grammar = self.compile_grammar(spec)
        if outlet is None:
            outlet, key = self._outlet, request.request_id
        sequences = self._new_sequences(request, seed, grammar)
        self._outlets.add(outlet)
        for sequence in sequences:
            sequence.outlet, sequence.key = outlet, key
        self._scheduler.add(*sequences)
        self._found_nothing = False
        self._num_arrivals += 1
        if request.priority < PRIORITY_BATCH:
            self._runner.forget_interrupt()  # the steps to come have it

    def _new_sequences(
        self, request: Request, seed: int, grammar: CompiledGrammar | None
    ) -> list[Sequence]:
        """One that forks once its prompt is computed, or those that go on from before."""
        resumed = {0: []} if request.resumed is None else request.resumed
        sequences = []
        for index, token_ids in sorted(resumed.items()):
            sequence = Sequence(
                request,
                arrival=self._num_arrivals,
                seed=derive_seed(seed, index),
                matcher=None if grammar is None else grammar.matcher(),
            )
            if request.resumed is not None:
                try:
                    sequence.resume(index, token_ids)
                except GrammarStepError as error:
                    raise ValidationError.of(GRAMMAR_FIELD, str(error)) from error
            sequences.append(sequence)
        return sequences

    def check_request(self, request: Request) -> None:
        """Refuse what the engine can never serve; see `add_request`."""
        self._check_resumed(request)
        num_prompt = len(request.prompt_token_ids)
        if num_prompt == 0:
            raise ValidationError.of("prompt", "the prompt must have at least one token")
        if num_prompt >= self.max_model_len:
            raise BadRequestError(
                f"the prompt has {num_prompt} tokens; the model's context of {self.max_model_len} "
                f"tokens leaves room for prompts of at most {self.max_model_len - 1}",
                param="messages",
                openai_code="context_length_exceeded",
            )
        if (
            not 0
            <= min(request.prompt_token_ids)
            <= max(request.prompt_token_ids)
            < (self.vocab_size)
        ):
            raise ValidationError.of(
                "prompt", f"token ids must be 0 to {self.vocab_size - 1}, the model's vocabulary"
            )
        self._check_width(request.sampling_params)
        if request.adapter and not self._adapters.num_slots:
            raise BadRequestError(
                f"this engine has no slots for adapters, so {request.adapter!r} cannot be used",
                param="model",
            )

    def _check_resumed(self, request: Request) -> None:
        """Refuse what cannot go on: the replica that it began on may have been another model's."""
        if request.resumed is None:
            return
        if request.sampling_params.beam is not None or not request.resumed:
            raise BadRequestError("a beam search, or a request without sequences, cannot go on")
        longest = max(map(len, request.resumed.values()))
        max_tokens = request.sampling_params.max_tokens
        if (max_tokens is not None and longest >= max_tokens) or (
            len(request.prompt_token_ids) + longest >= self.max_model_len
        ):
            raise BadRequestError(f"no token can follow the {longest} that have come already")
        token_ids = [token_id for tokens in request.resumed.values() for token_id in tokens]
        if not all(0 <= token_id < self.vocab_size for token_id in token_ids):
            raise BadRequestError("the output so far has tokens that this model does not know")

    def _check_width(self, params: SamplingParams) -> None:
        """Refuse more sequences than may run at once, and beams that cannot be."""
        limit = self._limits.max_num_seqs
        if params.beam is None:
            if params.n > limit:
                raise ValidationError.of(
                    "n", f"n is {params.n}; this engine runs at most {limit} sequences at once"
                )
            return
        if not params.n <= params.beam.width <= limit:
            raise ValidationError.of(
                "best_of",
                f"the beam width is {params.beam.width}; it must be at least n ({params.n}) and "
                f"at most {limit}, the sequences that this engine runs at once",
            )
        if params.beam.stop_strings and not self._can_spell:
            raise ValidationError.of("stop", "this engine has no tokenizer for stop strings")

    def abort_request(self, request_id: str, index: int | None = None) -> None:
        """Forget a request, or one of its sequences, and free the blocks. Unknown and finished ones
        are no error.
        """
        self._scheduler.abort(request_id, index)
        self._found_nothing = False

    def interrupt(self) -> None:
        """An online request is on its way here: a step of batch sequences alone may be given up for
        it, to be computed again. Safe in any thread.
        """
        self._runner.interrupt()

    def step(self) -> StepDeltas:
        """One round of continuous batching: choose tokens, compute them, record them. Nothing comes
        of it where it was interrupted."""
        failures = self._install_adapters()
        # A step that was launched already is of sequences that do not guess.
        is_ahead = self._overlap is not None and self._overlap.is_ahead
        batch = self._scheduler.schedule(may_guess=not is_ahead)
        self._found_nothing = not batch
        if not batch:
            return StepDeltas(failures=failures)
        started_s = time.perf_counter()
        try:
            outputs = self._execute(batch)
        except StepInterrupted:
            self._scheduler.give_up(batch)
            return StepDeltas(failures=failures)
        seconds = time.perf_counter() - started_s
        deltas = self._scheduler.update(batch, outputs, seconds=seconds)
        columns = [(outlet, outlet.take()) for outlet in self._outlets if not outlet.is_empty]
        self._num_steps += 1
        self._last_step_at_s = time.monotonic()
        return StepDeltas(columns, deltas, failures)

    def _execute(self, batch: Batch) -> StepOutputs:
        overlap = self._overlap
        launched = None if overlap is None else overlap.take(batch)
        if overlap is not None and launched is not None:
            return overlap.finish(batch, launched)
        inputs = build_step_inputs(
            batch,
            block_size=self._blocks.block_size,
            eos_token_ids=self._runner.eos_token_ids,
            masks=self._grammar_masks,
        )
        try:
            if overlap is None:
                return self._runner.execute(inputs)
            return overlap.finish(batch, overlap.launch(inputs))
        finally:
            if inputs.read_grammar_masks is not None:
                inputs.read_grammar_masks()  # no matcher moves on before its mask is there

    def _install_adapters(self) -> dict[str, ServingError]:
        """Those that were read since the last step; returns the requests that this ends."""
        failures: dict[str, ServingError] = {}
        for name, error in self._adapters.collect(is_idle=self._found_nothing):
            for request_id in self._scheduler.waiting_for_adapter(name):
                self._scheduler.abort(request_id)
                failures[request_id] = error
        return failures

    def stats(self) -> EngineStats:
        scheduler = self._scheduler
        return EngineStats(
            num_requests_running=scheduler.num_running,
            num_requests_waiting=scheduler.num_waiting,
            num_waiting_prefill_tokens=scheduler.num_waiting_prefill_tokens,
            num_free_blocks=self._blocks.num_free_blocks,
            num_blocks=self._blocks.num_blocks,
            num_steps=self._num_steps,
            prompt_tokens_total=scheduler.num_prompt_tokens,
            cached_prompt_tokens_total=scheduler.num_cached_tokens,
            generation_tokens_total=scheduler.num_generated_tokens,
            preemptions_total=scheduler.num_preemptions,
            spec_decode_drafts_total=scheduler.num_drafts,
            spec_decode_draft_tokens_total=scheduler.num_draft_tokens,
            spec_decode_accepted_tokens_total=scheduler.num_accepted_tokens,
            last_step_at_s=self._last_step_at_s,
            loaded_adapters=self._adapters.loaded,
        )

    def check_health(self) -> None:
        """Safe in any thread.

        Raises:
            RuntimeError: no step can be computed any more.
        """
        self._runner.check_health()

    def close(self) -> None:
        """Stop the processes that guard the compilation of grammars, the thread of masks, and the
        runner's processes."""
        self._adapters.close()
        self._grammar_masks.close()
        if self._grammar_compiler is not None:
            self._grammar_compiler.close()
        self._runner.close()

    def check(self) -> None:
        """Assert the books: owned + free = total blocks. For tests, after any step."""
        self._scheduler.check()
