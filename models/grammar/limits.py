"""Bounds on the time and memory that one client's grammar may cost, and how a matcher gets them."""

import msgspec
from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from models.grammar.errors import GrammarError
from models.grammar.source import shorten


class GrammarLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Time is enforced on the guard process while compiling, and by counted work per step after.
    It is the processor's: what a grammar costs does not depend on what else the machine does.
    """

    max_text_bytes: int = 2 * 1024 * 1024
    compile_timeout_s: float = 3.0  # checking, compiling and probing, in the guard
    guard_memory_bytes: int = 1024**3  # that the guard may take beyond its tokenizer
    num_guards: int = 2  # a slow grammar holds up others only when there are this many
    max_probe_step_s: float = 0.5  # one step while probing
    probe_steps: int = 12
    cache_entries: int = 256
    cache_bytes: int = 64 * 1024 * 1024  # of source text; compiled, it is a few times that

    # Work of the back end (its units): about 50,000 a ms, 14,000 a ms and 20,000 a ms.
    initial_lexer_fuel: int = 1_000_000
    step_lexer_fuel: int = 200_000
    step_max_items: int = 50_000
    max_items_in_row: int = 2_000
    max_lexer_states: int = 50_000  # 1-2 kB each
    max_grammar_size: int = 500_000

    def new_matcher(self, vocabulary: LLTokenizer, source: str) -> LLMatcher:
        """Compile llguidance source text. Releases the interpreter lock.

        Raises:
            GrammarError: the back end refuses it.
        """
        limits = LLParserLimits(
            max_items_in_row=self.max_items_in_row,
            initial_lexer_fuel=self.initial_lexer_fuel,
            step_lexer_fuel=self.step_lexer_fuel,
            step_max_items=self.step_max_items,
            max_lexer_states=self.max_lexer_states,
            max_grammar_size=self.max_grammar_size,
            verbose_errors=False,
        )
        matcher = LLMatcher(vocabulary, source, log_level=0, limits=limits)
        if matcher.is_error():
            raise GrammarError(shorten(matcher.get_error()))
        return matcher
