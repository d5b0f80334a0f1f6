"""A step on its way to another rank."""

import msgspec

from models.engine.step_inputs import LayerInputs, PromptLogprobsRow, StepInputs
from models.parallel.step_order import StepOrder
from tests.models.step_driver import greedy_row

CHUNK = StepInputs(
    token_ids=[3, 4],
    positions=[100, 101],
    slot_mapping=[164, 165],
    query_lens=[2],
    context_lens=[102],
    block_tables=[[1, 2, 3]],
    sampling_rows=[],
)


def test_a_step_arrives_with_all_that_a_rank_computes_and_no_more() -> None:
    inputs = StepInputs(
        token_ids=[7, 8, 9, 250_000],
        positions=[12, 0, 1, 2],
        slot_mapping=[2**33, 64, 65, 66],
        query_lens=[1, 3],
        context_lens=[13, 3],
        block_tables=[[5, 2**20], [4]],
        sampling_rows=[greedy_row(0, 13), greedy_row(3, 3), greedy_row(3, 3)],
        block_copies=[(5, 6), (1, 2)],
        prompt_logprobs_rows=[
            PromptLogprobsRow(first_index=1, target_token_ids=[9, 250_000], num_top=3)
        ],
        read_grammar_masks=lambda: None,  # type: ignore[arg-type,return-value]
        layers=LayerInputs(chunk=CHUNK, first_layer=2, stop_layer=5),
    )
    frame = msgspec.msgpack.encode(StepOrder.of(inputs))
    arrived = msgspec.msgpack.decode(frame, type=StepOrder)
    assert arrived.logit_indices == [0, 3, 3]
    assert arrived.scored_spans == [(1, 2)]
    rebuilt = arrived.inputs()
    for field in (
        "token_ids",
        "positions",
        "slot_mapping",
        "query_lens",
        "context_lens",
        "block_tables",
        "block_copies",
        "layers",
    ):
        assert getattr(rebuilt, field) == getattr(inputs, field), field
    assert rebuilt.sampling_rows == []
    assert rebuilt.read_grammar_masks is None
