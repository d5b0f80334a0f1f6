"""Batch sequences take what online ones leave, and give way within one step."""

import pytest

from cluster.types import PRIORITY_BATCH, PRIORITY_ONLINE
from models.engine.engine import Engine
from tests.models.engine.test_scheduler import make_engine, make_request

MAX_NUM_SEQS = 8
BUDGET = 32


def busy_engine(*, num_blocks: int = 40, num_batch: int = 3 * MAX_NUM_SEQS) -> Engine:
    """Every place is a batch sequence's, and as many wait again."""
    engine, _ = make_engine(num_blocks=num_blocks, max_num_seqs=MAX_NUM_SEQS, budget=BUDGET)
    for k in range(num_batch):
        engine.add_request(
            make_request(
                f"batch-{k}",
                [k + 1] * 12,
                priority=PRIORITY_BATCH,
                max_tokens=60,
                ignore_eos=True,
            )
        )
    for _ in range(12):
        engine.step()
    stats = engine.stats()
    assert stats.num_requests_waiting > 0
    return engine


def add_online(engine: Engine, name: str, prompt: list[int], max_tokens: int) -> None:
    engine.add_request(
        make_request(name, prompt, priority=PRIORITY_ONLINE, max_tokens=max_tokens, ignore_eos=True)
    )


def step_tokens(engine: Engine) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for delta in engine.step():
        found.setdefault(delta.request_id, []).extend(delta.token_ids)
    engine.check()
    return found


def greedy(prompt: list[int], num: int) -> list[int]:
    """What the simulator generates when nothing ends it."""
    engine, _ = make_engine(budget=BUDGET)
    add_online(engine, "alone", prompt, num)
    tokens: list[int] = []
    while engine.has_unfinished:
        tokens += step_tokens(engine).get("alone", [])
    return tokens


@pytest.mark.parametrize("num_blocks", [33, 40, 400])
def test_an_online_requests_first_token_comes_with_the_next_step(num_blocks: int) -> None:
    engine = busy_engine(num_blocks=num_blocks)
    add_online(engine, "online", [9] * (BUDGET - 1), 4)
    assert "online" in step_tokens(engine)


def test_then_it_gets_a_token_with_every_step_as_if_it_were_alone() -> None:
    engine = busy_engine()
    prompt = [5, 6, 7] * 7
    add_online(engine, "online", prompt, 30)
    tokens = [step_tokens(engine)["online"] for _ in range(30)]
    assert [len(step) for step in tokens] == [1] * 30
    assert [token for step in tokens for token in step] == greedy(prompt, 30)


def test_as_many_online_requests_as_there_are_places_take_all_of_them_at_once() -> None:
    engine = busy_engine(num_blocks=400)
    prompts = {f"online-{k}": [k + 50] * 3 for k in range(MAX_NUM_SEQS)}
    for name, prompt in prompts.items():
        add_online(engine, name, prompt, 20)
    for _ in range(20):
        assert set(step_tokens(engine)) == set(prompts)


def test_a_prompt_that_needs_whole_steps_gets_them() -> None:
    engine = busy_engine(num_blocks=400)
    add_online(engine, "online", list(range(90)), 2)
    steps = []
    while "online" not in (found := step_tokens(engine)):
        steps.append(found)
    assert steps == [{}, {}], "three steps of 32 tokens hold 90, and nothing else fits in two"


def test_what_online_requests_leave_of_a_step_is_the_batchs() -> None:
    engine = busy_engine(num_blocks=400)
    add_online(engine, "online", [7] * 5, 40)
    for _ in range(40):
        found = step_tokens(engine)
        assert "online" in found
        assert len(found) == MAX_NUM_SEQS, "the other places are full of batch sequences"


def test_what_had_to_give_way_ends_as_if_it_had_not() -> None:
    engine = busy_engine(num_batch=MAX_NUM_SEQS + 1)
    outputs: dict[str, list[int]] = {}
    before = {f"batch-{k}": greedy([k + 1] * 12, 60) for k in range(MAX_NUM_SEQS + 1)}
    for k in range(40):
        add_online(engine, f"online-{k}", [k + 2] * 20, 3)
        for name, tokens in step_tokens(engine).items():
            outputs.setdefault(name, []).extend(tokens)
    while engine.has_unfinished:
        for name, tokens in step_tokens(engine).items():
            outputs.setdefault(name, []).extend(tokens)
    assert engine.stats().preemptions_total > 0
    for name, expected in before.items():
        seen = outputs[name]
        assert seen == expected[-len(seen) :], name
    for k in range(40):
        assert outputs[f"online-{k}"] == greedy([k + 2] * 20, 3)


def test_no_online_request_waits_for_blocks_that_a_batch_has() -> None:
    """Arrivals at random while batch sequences hold all blocks: each starts in its first step."""
    engine = busy_engine(num_blocks=33)
    for k in range(60):
        add_online(engine, f"online-{k}", [k + 2] * (k % 20 + 2), 1)
        assert f"online-{k}" in step_tokens(engine)


def test_a_step_of_batch_sequences_is_given_up_for_an_online_request() -> None:
    engine, runner = make_engine(num_blocks=400, max_num_seqs=MAX_NUM_SEQS, budget=BUDGET)
    prompts = {f"batch-{k}": [k + 1] * 40 for k in range(4)}
    for name, prompt in prompts.items():
        engine.add_request(
            make_request(name, prompt, priority=PRIORITY_BATCH, max_tokens=6, ignore_eos=True)
        )
    outputs: dict[str, list[int]] = {}
    for k in range(200):
        if k % 2:
            engine.interrupt()
            assert not engine.step(), "nothing comes of it"
            engine.check()
        for name, tokens in step_tokens(engine).items():
            outputs.setdefault(name, []).extend(tokens)
        if not engine.has_unfinished:
            break
    assert runner.num_interrupted > 4
    assert outputs == {name: greedy(prompt, 6) for name, prompt in prompts.items()}


def test_blocks_of_a_step_that_was_given_up_are_nobodys_prefix() -> None:
    engine, runner = make_engine(num_blocks=400, max_num_seqs=MAX_NUM_SEQS, budget=BUDGET)
    prompt = list(range(24))
    engine.add_request(make_request("batch", prompt, priority=PRIORITY_BATCH, max_tokens=3))
    engine.interrupt()
    assert not engine.step()
    add_online(engine, "online", prompt, 3)
    outputs: list[int] = []
    while engine.has_unfinished:
        outputs += step_tokens(engine).get("online", [])
    assert outputs == greedy(prompt, 3)
    assert runner.num_interrupted == 1


def test_a_step_with_an_online_request_is_not_given_up() -> None:
    engine = busy_engine()
    add_online(engine, "online", [3, 4], 20)
    for _ in range(20):
        engine.interrupt()
        assert "online" in step_tokens(engine)
