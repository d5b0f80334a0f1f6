"""Who is computed next."""

from collections.abc import Sequence

from cluster.retrieval import InputKind
from deployments.embedding_lanes import Batch, EmbeddingLanes, WaitingCall, lanes_before
from models.embedding.batching import BatchLimits

LIMITS = BatchLimits(max_tokens=64, step_tokens=0)


def call(*lengths: int, first: int = 0) -> WaitingCall:
    """Rows of these lengths; the first token of each is `first` and counts up."""
    return WaitingCall([[first + i] * length for i, length in enumerate(lengths)])


def taken(batch: Batch | None) -> Sequence[int]:
    assert batch is not None
    return [row[0] for row in batch.tokens()]


def all_taken(lanes: EmbeddingLanes) -> list[Sequence[int]]:
    batches = []
    while (batch := lanes.next_batch(LIMITS)) is not None:
        batches.append(taken(batch))
    return batches


def test_queries_go_before_plain_texts_those_before_passages_and_batches_last() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(8, first=400), InputKind.BULK)
    lanes.add(call(8, first=300), InputKind.PASSAGE)
    lanes.add(call(8, first=200), InputKind.PLAIN)
    lanes.add(call(8, first=100), InputKind.QUERY)
    assert all_taken(lanes) == [[100], [200], [300], [400]]


def test_batches_get_a_twentieth_beside_texts_that_somebody_waits_for() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(*[64] * 60, first=100), InputKind.PLAIN)
    lanes.add(call(*[64] * 60, first=300), InputKind.BULK)
    turns = [tokens[0] >= 300 for tokens in all_taken(lanes)]
    assert turns[:42] == ([False] * 20 + [True]) * 2


def test_a_lane_that_is_passed_over_has_its_turn_in_the_end() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(*[64] * 30, first=100), InputKind.QUERY)
    lanes.add(call(*[64] * 3, first=300), InputKind.PASSAGE)
    turns = [tokens[0] >= 300 for tokens in all_taken(lanes)]
    assert turns.count(True) == 3
    assert turns[:27] == [False] * 8 + [True] + [False] * 8 + [True] + [False] * 8 + [True]


def test_the_calls_of_a_lane_take_turns() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(*[64] * 3, first=100), InputKind.PASSAGE)
    lanes.add(call(*[64] * 2, first=200), InputKind.PASSAGE)
    lanes.add(call(64, first=300), InputKind.PASSAGE)
    order = [tokens[0] // 100 for tokens in all_taken(lanes)]
    assert order == [1, 2, 3, 1, 2, 1]


def test_texts_of_several_calls_share_a_batch() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(16, first=100), InputKind.QUERY)
    lanes.add(call(16, first=200), InputKind.QUERY)
    lanes.add(call(32, first=300), InputKind.QUERY)
    assert all_taken(lanes) == [[100, 200], [300]]


def test_the_longest_text_of_a_call_goes_first_with_those_of_like_length() -> None:
    lanes = EmbeddingLanes()
    lanes.add(call(8, 32, 30, 8, 7), InputKind.PASSAGE)
    assert all_taken(lanes) == [[1, 2], [0, 3], [4]]  # as many rows as a power of two


def test_a_call_that_nobody_waits_for_is_forgotten() -> None:
    lanes = EmbeddingLanes()
    gone, stays = call(*[64] * 5, first=100), call(64, first=200)
    lanes.add(gone, InputKind.PASSAGE)
    lanes.add(stays, InputKind.PASSAGE)
    assert taken(lanes.next_batch(LIMITS)) == [100]
    lanes.discard(gone, InputKind.PASSAGE)
    lanes.discard(gone, InputKind.PASSAGE)  # it may be done already
    assert all_taken(lanes) == [[200]]


def test_what_is_computed_before_a_text() -> None:
    assert lanes_before(InputKind.QUERY) == (InputKind.QUERY,)
    assert lanes_before(InputKind.PLAIN) == (InputKind.QUERY, InputKind.PLAIN)
    assert set(lanes_before(InputKind.PASSAGE)) == set(InputKind) - {InputKind.BULK}
    assert set(lanes_before(InputKind.BULK)) == set(InputKind)
