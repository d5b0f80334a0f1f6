"""Stop strings where the engine itself has to see them: inside beams.

Everywhere else the ingress watches for them, which alone knows text.
"""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence


class StopStringTail:
    """Called with a hypothesis' output tokens: does its last token complete a stop string?"""

    def __init__(
        self,
        stop_strings: AbstractSequence[str],
        token_bytes: Callable[[int], bytes] | None,
        *,
        min_tokens: int = 0,
    ) -> None:
        """`min_tokens`: stop strings count only in text after this many tokens.

        Raises:
            ValueError: there are stop strings, and nobody to spell the tokens.
        """
        if stop_strings and token_bytes is None:
            raise ValueError("stop strings in beam search need a tokenizer")
        self._stops = [text.encode() for text in stop_strings]
        self._longest = max((len(stop) for stop in self._stops), default=0)
        self._token_bytes = token_bytes
        self._min_tokens = min_tokens

    def __call__(self, output_token_ids: list[int]) -> bool:
        if not self._stops or len(output_token_ids) <= self._min_tokens:
            return False
        assert self._token_bytes is not None
        last = self._token_bytes(output_token_ids[-1])
        tail = last
        for token_id in reversed(output_token_ids[self._min_tokens : -1]):
            if len(tail) >= len(last) + self._longest - 1:
                break
            tail = self._token_bytes(token_id) + tail
        return any(stop in tail for stop in self._stops)
