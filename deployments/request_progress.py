"""How far one request has come, so that another replica can go on where its own one stopped.

Random numbers are a function of seed and position, and sequences are recomputed from their tokens,
so the rest is the same tokens as if nothing had happened.
"""

import secrets

import msgspec

from cluster.types import Request, TokenDelta

#: Replicas that a request may lose in a row with next to nothing from them: it may be the request
#: that kills them, and that with its second token, so that it would get one from each.
MAX_FRUITLESS_LOSSES = 3
MIN_FRUIT = 16  # tokens


class RequestProgress:
    """The tokens that have come of each sequence, and what is still to come."""

    def __init__(self, request: Request) -> None:
        params = request.sampling_params
        if params.seed is None and params.beam is None:
            # Drawn here instead of in the engine: the next one must draw the same numbers.
            seeded = msgspec.structs.replace(params, seed=secrets.randbits(64))
            request = msgspec.structs.replace(request, sampling_params=seeded)
        self._request = request
        self._tokens: dict[int, list[int]] = {index: [] for index in request.indices}
        self._has_begun = False
        self._num_fruitless_losses = 0
        self._num_tokens_since_loss = 0

    @property
    def has_begun(self) -> bool:
        """Something has come."""
        return self._has_begun

    @property
    def num_tokens(self) -> int:
        """Of the sequences that have not ended."""
        return sum(len(token_ids) for token_ids in self._tokens.values())

    @property
    def is_finished(self) -> bool:
        return not self._tokens

    def record(self, delta: TokenDelta) -> None:
        """Note what has come."""
        self._has_begun = True
        self._num_tokens_since_loss += len(delta.token_ids)
        token_ids = self._tokens.get(delta.index)
        if token_ids is None:
            return  # its reader has ended it
        token_ids += delta.token_ids
        if delta.finish_reason is not None:
            del self._tokens[delta.index]

    def end(self, index: int) -> None:
        """Nothing more is wanted of one sequence."""
        self._tokens.pop(index, None)

    def note_loss(self) -> bool:
        """A replica failed with this request on it; whether another one should try it."""
        if self._num_tokens_since_loss >= MIN_FRUIT:
            self._num_fruitless_losses = 0
        self._num_tokens_since_loss = 0
        self._num_fruitless_losses += 1
        return self._num_fruitless_losses <= MAX_FRUITLESS_LOSSES

    def rest(self) -> Request:
        """The request for what is still to come.

        Beams come whole and at the end: a beam search that is not over begins again.
        """
        if not self._has_begun and len(self._tokens) == len(self._request.indices):
            return self._request
        so_far = {index: list(token_ids) for index, token_ids in self._tokens.items()}
        return msgspec.structs.replace(self._request, resumed=so_far)
