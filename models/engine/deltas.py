"""What the engine tells of its sequences: the deltas of a step."""

from collections.abc import Iterator
from collections.abc import Sequence as AbstractSequence
from dataclasses import dataclass, field

from cluster.errors import ServingError
from cluster.types import FinishReason, TokenDelta, TokenLogprobs
from models.engine.beam_search import Hypothesis
from models.engine.outlet import Outlet, TokenColumns
from models.engine.sequence import Sequence


@dataclass(slots=True)
class StepDeltas:
    """What a step brought: columns for the tokens that come alone, and the other deltas.

    To iterate yields all of them as deltas; keys are taken for request ids.
    """

    columns: list[tuple[Outlet, TokenColumns]] = field(default_factory=list)
    deltas: list[TokenDelta] = field(default_factory=list)
    # Requests that ended before their end: by id, why. Iterating leaves them out.
    failures: dict[str, ServingError] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns or self.deltas or self.failures)

    def __iter__(self) -> Iterator[TokenDelta]:
        for _, columns in self.columns:
            entries = zip(columns.keys, columns.indices, columns.token_ids, strict=True)
            for request_id, index, token_id in entries:
                yield TokenDelta(request_id, index, [token_id])
        yield from self.deltas


def token_delta(
    sequence: Sequence,
    token_id: int,
    logprobs: TokenLogprobs | None,
    ending: tuple[FinishReason | None, int | None],
    *,
    is_first: bool,
) -> TokenDelta:
    """One more token. `ending`: why the sequence ends with it, and the stop token that did it."""
    finish_reason, stop_token_id = ending
    return TokenDelta(
        request_id=sequence.request_id,
        index=sequence.index,
        token_ids=[token_id],
        finish_reason=finish_reason,
        stop_token_id=stop_token_id,
        logprobs=None if logprobs is None else [logprobs],
        num_cached_tokens=sequence.num_cached_tokens,
        prompt_logprobs=sequence.take_prompt_logprobs() if is_first else None,
    )


def joined_delta(deltas: AbstractSequence[TokenDelta]) -> TokenDelta:
    """Deltas of one sequence that come one after the other, as one."""
    last = deltas[-1]
    logprobs = [entry for delta in deltas for entry in delta.logprobs or ()]
    return TokenDelta(
        request_id=last.request_id,
        index=last.index,
        token_ids=[token_id for delta in deltas for token_id in delta.token_ids],
        finish_reason=last.finish_reason,
        stop_token_id=last.stop_token_id,
        logprobs=logprobs or None,
        num_cached_tokens=deltas[0].num_cached_tokens,
    )


def failed_delta(sequence: Sequence, index: int) -> TokenDelta:
    """The end of a sequence that has no next token."""
    return TokenDelta(
        request_id=sequence.request_id,
        index=index,
        token_ids=[],
        finish_reason=FinishReason.ERROR,
    )


def hypothesis_deltas(
    first: Sequence,
    hypotheses: AbstractSequence[Hypothesis],
    prompt_logprobs: list[TokenLogprobs] | None,
) -> list[TokenDelta]:
    """The n best of a beam search, each whole in one delta; the index is the rank.

    A grammar may allow fewer outputs than n: the last one is then given again. Without any (the
    model gave no finite logits) every choice ends with an error.
    """
    num_wanted = first.params.n
    best = list(hypotheses[:num_wanted])
    if not best:
        return [failed_delta(first, index) for index in range(num_wanted)]
    best += best[-1:] * (num_wanted - len(best))
    return [
        TokenDelta(
            request_id=first.request_id,
            index=index,
            token_ids=hypothesis.output_token_ids,
            finish_reason=hypothesis.finish_reason,
            stop_token_id=hypothesis.stop_token_id,
            logprobs=hypothesis.logprobs if first.params.logprobs is not None else None,
            num_cached_tokens=first.num_cached_tokens,
            prompt_logprobs=prompt_logprobs if index == 0 else None,
        )
        for index, hypothesis in enumerate(best)
    ]
