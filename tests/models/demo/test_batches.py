"""Rows have one of a few lengths, and no example gets lost."""

from models.demo.batches import ROW_LENGTHS, Example, batches


def example(length: int) -> Example:
    return Example(ids=[1] * length, weights=[1.0] * length, answer_start=0)


def test_batches_are_full_and_the_rest_is_given_back() -> None:
    examples = [example(length) for length in (*range(20, 400), 640)]
    found, left = batches(examples, num_tokens=2048, pad=0)
    assert sum(rows.ids_RL.shape[0] for rows in found) + len(left) == len(examples)
    for rows in found:
        num_rows, length = rows.ids_RL.shape
        assert length in ROW_LENGTHS
        assert num_rows == 2048 // length
    assert sum(rows.num_tokens for rows in found) == sum(len(one.ids) for one in examples) - sum(
        len(one.ids) for one in left
    )


def test_padding_has_no_weight() -> None:
    found, _ = batches([example(100)] * 16, num_tokens=2048, pad=7)
    assert found[0].ids_RL[:, 100:].eq(7).all()
    assert found[0].weights_RL.sum() == 1600
