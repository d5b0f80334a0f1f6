"""The two ways in which guided decoding fails: a grammar that is refused, a sequence that ends."""


class GrammarError(ValueError):
    """A grammar that cannot be honoured exactly. The message names the place and the reason."""


class GrammarStepError(RuntimeError):
    """One sequence's grammar went over its limits while generating; only that sequence ends."""
