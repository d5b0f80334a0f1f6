"""How fast a replica reads prompts, measured while it has some to read."""

from deployments.channel_wire import ReplicaStats


class PrefillSpeed:
    """Kept by one replica; it looks at its engine's counters once a second or so."""

    def __init__(self) -> None:
        self._tokens_per_s = 0.0
        self._since: tuple[float, int] | None = None  # prompts wait without a pause; read by then

    def update(self, stats: ReplicaStats, now_s: float) -> float:
        """Tokens per second in the newest stretch of waiting prompts; 0 until there was one.

        A prompt is counted when it has been read to its end, so a stretch counts as a whole.
        """
        num_read = stats.prompt_tokens_total - stats.cached_prompt_tokens_total
        if self._since is not None:
            since_s, read_by_then = self._since
            if now_s > since_s and num_read > read_by_then:
                self._tokens_per_s = (num_read - read_by_then) / (now_s - since_s)
        if not stats.num_waiting_prefill_tokens:
            self._since = None
        elif self._since is None:
            self._since = (now_s, num_read)
        return self._tokens_per_s
