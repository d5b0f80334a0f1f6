import pytest
import torch

from cluster.types import SamplingParams
from models.engine.logit_edits import edit_logits
from models.engine.step_inputs import SamplingRow


def make_row(
    params: SamplingParams,
    *,
    prompt: list[int] | None = None,
    output: list[int] | None = None,
    forbidden: tuple[int, ...] = (),
) -> SamplingRow:
    return SamplingRow(
        logit_index=0,
        params=params,
        seed=0,
        position=0,
        prompt_token_ids=prompt or [],
        output_token_ids=output or [],
        forbidden_token_ids=forbidden,
    )


def test_without_edits_the_logits_are_returned_themselves() -> None:
    logits = torch.zeros(2, 4)
    rows = [make_row(SamplingParams(), prompt=[1], output=[2])] * 2
    assert edit_logits(logits, rows) is logits


def test_the_argument_never_changes() -> None:
    logits = torch.zeros(1, 4)
    edit_logits(logits, [make_row(SamplingParams(logit_bias={1: 5.0}), forbidden=(2,))])
    assert torch.equal(logits, torch.zeros(1, 4))


def test_frequency_and_presence_penalties_count_output_tokens_only() -> None:
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    params = SamplingParams(frequency_penalty=0.5, presence_penalty=0.25)
    edited = edit_logits(logits, [make_row(params, prompt=[0, 0, 3], output=[1, 2, 1])])
    # Token 1 occurs twice: 2 - 2 * 0.5 - 0.25; token 2 once: 3 - 0.5 - 0.25.
    assert edited.tolist() == [[1.0, 0.75, 2.25, 4.0]]


def test_negative_penalties_favour_repetition() -> None:
    params = SamplingParams(frequency_penalty=-2.0, presence_penalty=-1.0)
    edited = edit_logits(torch.zeros(1, 3), [make_row(params, output=[1, 1])])
    assert edited.tolist() == [[0.0, 5.0, 0.0]]


def test_the_repetition_penalty_divides_positive_and_multiplies_negative_logits_once() -> None:
    logits = torch.tensor([[4.0, -4.0, 3.0, -3.0, 0.0]])
    params = SamplingParams(repetition_penalty=2.0)
    row = make_row(params, prompt=[0, 0, 1], output=[0, 4])
    # Token 0 is in the prompt and in the output, and is penalised once.
    assert edit_logits(logits, [row]).tolist() == [[2.0, -8.0, 3.0, -3.0, 0.0]]


def test_edits_are_applied_in_the_documented_order() -> None:
    params = SamplingParams(
        logit_bias={0: 3.0, 2: 100.0},
        repetition_penalty=2.0,
        frequency_penalty=0.5,
        presence_penalty=0.25,
    )
    row = make_row(params, prompt=[0], output=[0, 0], forbidden=(2,))
    # ((1 + 3) / 2) - 2 * 0.5 - 0.25, and the ban wins over the bias.
    assert edit_logits(torch.ones(1, 3), [row]).tolist() == [[0.75, 1.0, -torch.inf]]


def test_each_row_has_its_own_edits() -> None:
    rows = [
        make_row(SamplingParams(), output=[0, 1]),
        make_row(SamplingParams(presence_penalty=1.0), output=[1]),
        make_row(SamplingParams(logit_bias={0: -1.0})),
        make_row(SamplingParams(), forbidden=(0, 1)),
    ]
    expected = [[0.0, 0.0], [0.0, -1.0], [-1.0, 0.0], [-torch.inf, -torch.inf]]
    assert edit_logits(torch.zeros(4, 2), rows).tolist() == expected


def test_low_precision_logits_are_edited_in_float32() -> None:
    logits = torch.full((1, 2), 100.0, dtype=torch.bfloat16)
    edited = edit_logits(logits, [make_row(SamplingParams(logit_bias={0: 0.01}))])
    assert edited.dtype == torch.float32
    assert edited[0, 0].item() == pytest.approx(100.01)


@pytest.mark.parametrize("token_id", [-1, 4])
def test_a_token_outside_of_the_vocabulary_never_reaches_the_device(token_id: int) -> None:
    with pytest.raises(AssertionError, match="token id"):
        edit_logits(torch.zeros(2, 4), [make_row(SamplingParams(logit_bias={token_id: 1.0}))] * 2)
