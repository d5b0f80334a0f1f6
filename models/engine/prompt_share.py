"""How many tokens of long prompts a step may compute beside streams.

A step is as long as all that is in it, and what a prompt's token adds grows with the context that
it attends to. So the time of steps without prompts is known from such steps, the time that a token
adds from the steps that had some, and a step takes as many as fit a share of its time. Prompts that
fit one step are not long. What passes some of the layers counts as a part of its tokens.
"""

_LEARNING = 0.3  # of the newest step, in what is known
_STEPS_UNTIL_ALONE = 16  # that a long prompt is part of, until the streams have one for themselves


class PromptShare:
    """The allowance of long prompts in one engine."""

    def __init__(self, max_slowdown: float | None, *, min_tokens: int, max_tokens: int) -> None:
        """
        Args:
            max_slowdown: how much longer they may make the steps of streams, as a share of their
                time; None: as long as they like.
            min_tokens: of a step, however long they take: fewer would save no time.
            max_tokens: of a step.
        """
        self._max_slowdown = max_slowdown
        self._min_tokens = min(min_tokens, max_tokens)
        self._max_tokens = max_tokens
        self._alone_s: float | None = None  # a step of streams alone
        self._token_s: float | None = None  # what a token of a long prompt adds to it
        self._num_latest: float = self._min_tokens
        self._num_after_alone: float | None = None  # of the first step after the streams' own
        self._num_until_alone = 0

    def num_tokens(self) -> float:
        """For the step that is being chosen, which has streams. Now and then none, to learn how
        long the streams' steps are by now; and before there are more than twice as many as after
        the last of those, for what is taken for long steps of streams would let in ever more."""
        if self._max_slowdown is None:
            return self._max_tokens
        if self._num_until_alone == 0:
            self._begin_count()
            return 0
        num_tokens = self._fitting_tokens(self._max_slowdown)
        if self._num_after_alone is None:
            self._num_after_alone = num_tokens
        if num_tokens > 2 * self._num_after_alone:
            self._begin_count()
            return 0
        self._num_until_alone -= 1
        return num_tokens

    def _begin_count(self) -> None:
        """Of steps until the streams have one for themselves again."""
        self._num_until_alone = _STEPS_UNTIL_ALONE
        self._num_after_alone = None

    def _fitting_tokens(self, max_slowdown: float) -> float:
        if self._alone_s is None or self._token_s is None:
            return self._min_tokens
        most = min(self._max_tokens, 2 * self._num_latest)  # what a first step cost is no rule
        if self._token_s * most > max_slowdown * self._alone_s:
            most = max_slowdown * self._alone_s / self._token_s
        return max(self._min_tokens, most)

    def observe(self, *, num_tokens: float, seconds: float) -> None:
        """A step of streams and so many tokens of long prompts, and nothing else, was computed."""
        if num_tokens == 0:
            self._begin_count()
            # What else the machine does makes steps longer, and nothing makes them shorter.
            self._alone_s = min(seconds, _moved(self._alone_s, seconds))
        elif self._alone_s is not None:
            token_s = max(0.0, seconds - self._alone_s) / num_tokens
            self._token_s = _moved(self._token_s, token_s)
            self._num_latest = max(self._min_tokens, num_tokens)


def _moved(known: float | None, seen: float) -> float:
    if known is None:
        return seen
    likely = min(seen, 2 * known + 1e-9)  # a step that something else made long is no rule
    return known + _LEARNING * (likely - known)
