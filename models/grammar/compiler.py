"""Guided decoding: which tokens may come next, so that an output matches its grammar.

`GrammarCompiler.compile` turns a `GrammarSpec` into a `CompiledGrammar` (slow, bounded, cached; in
any thread but the engine's). `CompiledGrammar.matcher` gives the state of one sequence:
`fill_mask` before a token is chosen, `accept` after. Needs no torch.

What holds for every output that ends by itself: it matches. One that is cut short is a beginning of
something that matches. End-of-sequence tokens are allowed exactly where the grammar may end, other
special tokens never (but where a LARK grammar names them), ids above the tokenizer's never.

Shapes: R = rows of the batch, W = ceil(vocab_size / 32) words of 32 tokens, lowest bit first.
"""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import numpy as np
from llguidance import LLExecutor, LLMatcher
from numpy.typing import NDArray

from cluster.types import GrammarSpec
from models.grammar.errors import GrammarError, GrammarStepError
from models.grammar.guard import GrammarGuard, GuardSetup
from models.grammar.limits import GrammarLimits
from models.grammar.source import shorten
from models.grammar.vocabulary import load_vocabulary

__all__ = [
    "CompiledGrammar",
    "GrammarCompiler",
    "GrammarError",
    "GrammarLimits",
    "GrammarMatcher",
    "GrammarStepError",
    "MaskFiller",
]

_ENTRY_BYTES = 16 * 1024  # charged for each cached grammar beside its source text


class GrammarMatcher:
    """Where one sequence stands in its grammar. Not thread-safe."""

    __slots__ = ("_matcher", "_num_words")

    def __init__(self, matcher: LLMatcher, num_words: int) -> None:
        self._matcher = matcher
        self._num_words = num_words

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end-of-sequence token can follow, or one has been accepted."""
        return self._matcher.is_stopped()

    @property
    def may_end(self) -> bool:
        """Whether the output so far matches, so that it may end here."""
        return self._matcher.is_stopped() or self._matcher.is_accepting()

    def fill_mask(self, mask_W: NDArray[np.int32]) -> None:
        """Overwrite a row with the allowed tokens: bit i of word w is token 32 w + i.

        Raises:
            GrammarStepError: the grammar went over its limits; the sequence must end.
        """
        assert mask_W.shape == (self._num_words,), "a row has one bit for each token"
        assert mask_W.dtype == np.int32
        assert mask_W.flags.c_contiguous
        self._matcher.unsafe_compute_mask_ptr(mask_W.ctypes.data, mask_W.nbytes)
        self._require_healthy()

    def accept(self, token_id: int) -> None:
        """Advance by a token that the last mask allowed.

        Raises:
            GrammarStepError: the grammar went over its limits, or refuses the token all the same;
                the sequence must end.
        """
        if not self._matcher.consume_token(token_id):
            raise GrammarStepError(f"token {token_id}: {shorten(self._matcher.get_error())}")

    def count_allowed(self, token_ids: list[int]) -> int:
        """How many of these tokens, from the first on, could come next. None is accepted."""
        return int(self._matcher.validate_tokens(token_ids))

    def fork(self) -> "GrammarMatcher":
        """An independent copy."""
        return GrammarMatcher(self._matcher.deep_copy(), self._num_words)

    def forced_tokens(self) -> list[int]:
        """Tokens that must come next, because the grammar leaves no choice of text; mostly [].

        They are spelled as the tokenizer would spell the text. Not yet accepted.
        """
        token_ids = self._matcher.compute_ff_tokens()
        return token_ids[: self._matcher.validate_tokens(token_ids)] if token_ids else []

    def _require_healthy(self) -> None:
        if self._matcher.is_error():
            raise GrammarStepError(shorten(self._matcher.get_error()))


class CompiledGrammar:
    """A grammar for one vocabulary. Immutable; safe to share between threads."""

    def __init__(self, prototype: LLMatcher, num_words: int) -> None:
        self._prototype = prototype
        self._num_words = num_words

    def matcher(self) -> GrammarMatcher:
        """The state of a sequence that has no tokens yet."""
        return GrammarMatcher(self._prototype.deep_copy(), self._num_words)


class MaskFiller:
    """Fills the masks of a batch on several threads, the interpreter lock released."""

    def __init__(self, num_threads: int | None = None) -> None:
        """None: most of the machine's cores."""
        self._executor = LLExecutor(num_threads)

    def fill(
        self, matchers: Sequence[GrammarMatcher | None], mask_RW: NDArray[np.int32]
    ) -> dict[int, GrammarStepError]:
        """Overwrite each matcher's row; rows of None are left as they are.

        Returns:
            The rows whose grammar went over its limits: those sequences must end.
        """
        rows = [(m, row) for row, m in enumerate(matchers) if m is not None]
        if not rows:
            return {}
        assert mask_RW.dtype == np.int32
        assert mask_RW.flags.c_contiguous
        assert mask_RW.shape == (len(matchers), rows[0][0]._num_words), "one row for each"
        assert len({id(m) for m, _ in rows}) == len(rows), "each row has a matcher of its own"
        self._executor.unsafe_compute_mask_ptr(
            [(matcher._matcher, row) for matcher, row in rows],
            mask_RW.ctypes.data,
            mask_RW.shape[1] * mask_RW.itemsize,
            len(matchers),
        )
        return {
            row: GrammarStepError(shorten(matcher._matcher.get_error()))
            for matcher, row in rows
            if matcher._matcher.is_error()
        }


class GrammarCompiler:
    """Compiles grammars for one model and keeps the latest. Safe to use from threads.

    A new grammar goes through a guard process first (`models.grammar.guard`); what it refuses
    never reaches this process's back end. Refusals are cached like grammars. Threads that ask for
    the same grammar at the same time share one compilation.
    """

    def __init__(
        self,
        tokenizer_file: Path,
        *,
        vocab_size: int,
        eos_token_ids: frozenset[int],
        limits: GrammarLimits | None = None,
    ) -> None:
        """`vocab_size` is the width of the model's logits.

        Raises:
            ValueError: the tokenizer does not fit the model.
        """
        self._limits = limits or GrammarLimits()
        self._vocabulary = load_vocabulary(
            tokenizer_file, vocab_size=vocab_size, eos_token_ids=eos_token_ids
        )
        self._num_words = mask_words(vocab_size)
        setup = GuardSetup(
            tokenizer_file=str(tokenizer_file),
            vocab_size=vocab_size,
            eos_token_ids=sorted(eos_token_ids),
            limits=self._limits,
        )
        self._guards = _GuardPool(setup, self._limits.num_guards)
        self._cache = _GrammarCache(self._limits)
        self._lock = threading.Lock()
        self._under_way: dict[GrammarSpec, Future[CompiledGrammar]] = {}

    def compile(self, spec: GrammarSpec) -> CompiledGrammar:
        """The compiled grammar. Blocks for at most a few seconds, microseconds when cached.

        Raises:
            GrammarError: it cannot be honoured; names the place and the reason.
        """
        with self._lock:
            known = self._cache.get(spec)
            if known is not None:
                return known.result()
            future = self._under_way.get(spec)
            is_mine = future is None
            if future is None:
                future = self._under_way[spec] = Future()
        if is_mine:
            self._compile_into(future, spec)
        return future.result()

    def close(self) -> None:
        """Stop the guard processes."""
        self._guards.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _compile_into(self, future: "Future[CompiledGrammar]", spec: GrammarSpec) -> None:
        """Whatever happens, those who wait are told."""
        try:
            future.set_result(self._compile_uncached(spec))
        except BaseException as error:
            future.set_exception(error)
        with self._lock:
            del self._under_way[spec]
            if future.exception() is None or isinstance(future.exception(), GrammarError):
                self._cache.put(spec, future)

    def _compile_uncached(self, spec: GrammarSpec) -> CompiledGrammar:
        try:
            num_bytes = len(spec.text.encode())
        except UnicodeEncodeError as error:
            raise GrammarError("the text has half of a surrogate pair") from error
        if num_bytes > self._limits.max_text_bytes:
            raise GrammarError(
                f"{num_bytes} bytes of grammar are more than {self._limits.max_text_bytes}"
            )
        with self._guards.borrow() as guard:
            source = guard.examine(spec)
        matcher = self._limits.new_matcher(self._vocabulary, source)
        # The first mask is the slowest, and every copy starts with what it built.
        row = np.zeros(self._num_words, dtype=np.int32)
        matcher.unsafe_compute_mask_ptr(row.ctypes.data, row.nbytes)
        if matcher.is_error():
            raise GrammarError(f"too complex: {shorten(matcher.get_error())}")
        return CompiledGrammar(matcher, self._num_words)


def mask_words(vocab_size: int) -> int:
    """The number of 32-bit words in a mask."""
    return (vocab_size + 31) // 32


class _GuardPool:
    """A few guards; the second and later ones start when they are first needed."""

    def __init__(self, setup: GuardSetup, num_guards: int) -> None:
        assert num_guards >= 1
        self._setup = setup
        self._is_closed = False
        self._idle: queue.LifoQueue[GrammarGuard | None] = queue.LifoQueue()
        for _ in range(num_guards - 1):
            self._idle.put(None)
        self._idle.put(GrammarGuard(setup))

    @contextmanager
    def borrow(self) -> Iterator[GrammarGuard]:
        """Wait for a guard that has nothing to do.

        Raises:
            RuntimeError: the pool is closed.
        """
        idle = self._idle.get()
        if self._is_closed:
            self._idle.put(None)  # for the next one who waits
            raise RuntimeError("the grammar compiler is closed")
        guard = idle or GrammarGuard(self._setup)
        try:
            yield guard
        finally:
            if self._is_closed:
                guard.close()
            self._idle.put(guard)

    def close(self) -> None:
        """Stop the idle guards, and the others when they are given back. Nobody waits for one any
        more: whoever does, or comes later, gets an error.
        """
        self._is_closed = True
        with suppress(queue.Empty):
            while True:
                guard = self._idle.get_nowait()
                if guard is not None:
                    guard.close()
        self._idle.put(None)


class _GrammarCache:
    """The most recently used grammars and refusals, bounded in number and in source text."""

    def __init__(self, limits: GrammarLimits) -> None:
        self._limits = limits
        self._entries: OrderedDict[GrammarSpec, Future[CompiledGrammar]] = OrderedDict()
        self._num_bytes = 0

    def get(self, spec: GrammarSpec) -> "Future[CompiledGrammar] | None":
        known = self._entries.get(spec)
        if known is not None:
            self._entries.move_to_end(spec)
        return known

    def put(self, spec: GrammarSpec, known: "Future[CompiledGrammar]") -> None:
        self._entries[spec] = known
        self._num_bytes += _cost(spec)
        while self._entries and (
            len(self._entries) > self._limits.cache_entries
            or self._num_bytes > self._limits.cache_bytes
        ):
            dropped, _ = self._entries.popitem(last=False)
            self._num_bytes -= _cost(dropped)


def _cost(spec: GrammarSpec) -> int:
    return len(spec.text) + _ENTRY_BYTES
