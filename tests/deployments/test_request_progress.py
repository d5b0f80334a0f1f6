"""What is still to come of a request, after each thing that may have come."""

from cluster.types import BeamParams, FinishReason, Request, SamplingParams, TokenDelta
from deployments.request_progress import MAX_FRUITLESS_LOSSES, MIN_FRUIT, RequestProgress


def progress_of(**params: object) -> RequestProgress:
    sampling_params = SamplingParams(**params)  # type: ignore[arg-type]
    return RequestProgress(
        Request(request_id="r", prompt_token_ids=[1], sampling_params=sampling_params)
    )


def test_what_has_not_begun_begins_with_the_seed_that_it_will_keep() -> None:
    progress = progress_of(n=2)
    first = progress.rest()
    assert first.resumed is None
    assert first.sampling_params.seed is not None
    progress.record(TokenDelta("r", 0, [7]))
    assert progress.rest().sampling_params == first.sampling_params


def test_a_seed_that_was_given_is_kept() -> None:
    assert progress_of(seed=3).rest().sampling_params.seed == 3


def test_sequences_go_on_after_their_own_tokens_and_the_finished_are_left_out() -> None:
    progress = progress_of(n=3)
    for index in range(3):
        progress.record(TokenDelta("r", index, [10 + index]))
    progress.record(TokenDelta("r", 1, [20], FinishReason.STOP))
    progress.record(TokenDelta("r", 2, [30, 31]))
    rest = progress.rest()
    assert rest.resumed == {0: [10], 2: [12, 30, 31]}
    assert rest.indices == {0, 2}
    progress.end(0)
    progress.record(TokenDelta("r", 0, [99]))  # was under way
    assert progress.rest().resumed == {2: [12, 30, 31]}
    progress.record(TokenDelta("r", 2, [32], FinishReason.LENGTH))
    assert progress.is_finished


def test_a_rest_does_not_change_with_what_comes_later() -> None:
    progress = progress_of()
    progress.record(TokenDelta("r", 0, [1]))
    rest = progress.rest()
    progress.record(TokenDelta("r", 0, [2]))
    assert rest.resumed == {0: [1]}


def test_a_beam_search_begins_again() -> None:
    progress = progress_of(n=2, beam=BeamParams(width=2))
    assert progress.rest().resumed is None
    assert progress.rest().sampling_params.seed is None


def test_losses_count_while_next_to_nothing_comes() -> None:
    progress = progress_of()
    for _ in range(MAX_FRUITLESS_LOSSES):
        progress.record(TokenDelta("r", 0, [1]))  # the next one kills every replica
        assert progress.note_loss()
    progress.record(TokenDelta("r", 0, [1]))
    assert not progress.note_loss()


def test_losses_are_forgotten_when_enough_has_come() -> None:
    progress = progress_of()
    for _ in range(MAX_FRUITLESS_LOSSES):
        assert progress.note_loss()
    progress.record(TokenDelta("r", 0, [1] * MIN_FRUIT))
    assert [progress.note_loss() for _ in range(MAX_FRUITLESS_LOSSES + 1)] == [
        *[True] * MAX_FRUITLESS_LOSSES,
        False,
    ]
