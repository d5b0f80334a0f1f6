"""Tenants share an engine: counters, places, and how long one has to wait for another."""

import pytest

from models.engine.engine import Engine
from models.engine.fair_shares import FairShares
from tests.models.engine.test_scheduler import make_engine, make_request

MAX_NUM_SEQS = 8
BUDGET = 32


def test_the_least_served_comes_first() -> None:
    shares = FairShares()
    shares.begin("a")
    shares.begin("b")
    shares.charge("a", num_prompt_tokens=3)
    shares.charge("b", num_output_tokens=1)
    assert shares.in_order(["a", "b"]) == ["b", "a"]


def test_a_newcomer_starts_level_with_those_who_are_there() -> None:
    shares = FairShares()
    shares.begin("a")
    shares.charge("a", num_prompt_tokens=100)
    shares.begin("b")
    shares.charge("b", num_prompt_tokens=1)
    assert shares.in_order(["a", "b"]) == ["a", "b"], "its pause saved nothing up"


def test_a_tenant_that_leaves_and_comes_back_does_not_shed_what_it_had() -> None:
    shares = FairShares()
    shares.begin("a")
    shares.begin("b")
    shares.charge("a", num_prompt_tokens=100)
    shares.end("a")
    shares.begin("a")
    assert shares.in_order(["a", "b"]) == ["b", "a"]


def crowded_engine(
    num_requests: int, *, prompt_len: int = 4, num_blocks: int = 400, priority: int = 0
) -> Engine:
    """One tenant's requests, more than there are places."""
    engine, _ = make_engine(num_blocks=num_blocks, max_num_seqs=MAX_NUM_SEQS, budget=BUDGET)
    for k in range(num_requests):
        prompt = [(k + i) % 90 for i in range(prompt_len)]
        engine.add_request(
            make_request(
                f"crowd-{k}",
                prompt,
                tenant="crowd",
                priority=priority,
                max_tokens=40,
                ignore_eos=True,
            )
        )
    for _ in range(6):
        engine.step()
    return engine


def steps_until(engine: Engine, request_id: str) -> int:
    for count in range(1, 1000):
        deltas = engine.step()
        engine.check()
        if any(delta.request_id == request_id for delta in deltas):
            return count
    raise AssertionError("it starves")


@pytest.mark.parametrize("prompt_len", [4, 70])
@pytest.mark.parametrize("num_blocks", [40, 400])
@pytest.mark.parametrize("priority", [0, 100])
def test_a_thousand_requests_of_one_tenant_delay_another_by_one_step(
    prompt_len: int, num_blocks: int, priority: int
) -> None:
    engine = crowded_engine(1000, prompt_len=prompt_len, num_blocks=num_blocks, priority=priority)
    engine.add_request(
        make_request("single", [7, 8, 9], tenant="other", priority=priority, max_tokens=5)
    )
    assert steps_until(engine, "single") <= 2


def test_two_crowds_share_the_places_and_the_tokens() -> None:
    engine = crowded_engine(40)
    for k in range(40):
        prompt = [(k + i) % 80 for i in range(4)]
        engine.add_request(
            make_request(f"late-{k}", prompt, tenant="late", max_tokens=40, ignore_eos=True)
        )
    num_tokens = {"crowd": 0, "late": 0}
    for _ in range(100):
        for delta in engine.step():
            num_tokens[delta.request_id.partition("-")[0]] += len(delta.token_ids)
        engine.check()
    assert 0.8 < num_tokens["crowd"] / num_tokens["late"] < 1.25


def test_who_had_to_give_way_ends_as_if_alone() -> None:
    engine = crowded_engine(12)
    outputs: dict[str, list[int]] = {}
    for k in range(30):
        engine.add_request(
            make_request(f"single-{k}", [k, 8, 9], tenant=f"t{k}", max_tokens=3, ignore_eos=True)
        )
        for delta in engine.step():
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
    while engine.has_unfinished:
        for delta in engine.step():
            outputs.setdefault(delta.request_id, []).extend(delta.token_ids)
        engine.check()
    assert engine.stats().preemptions_total > 0
    alone, _ = make_engine()
    for k in range(12):
        prompt = [(k + i) % 90 for i in range(4)]
        alone.add_request(make_request(f"crowd-{k}", prompt, max_tokens=40, ignore_eos=True))
    expected: dict[str, list[int]] = {}
    while alone.has_unfinished:
        for delta in alone.step():
            expected.setdefault(delta.request_id, []).extend(delta.token_ids)
    for name, tokens in expected.items():
        assert outputs[name] == tokens[-len(outputs[name]) :], name
    for k in range(30):
        assert len(outputs[f"single-{k}"]) == 3


def test_one_tenant_alone_is_served_in_order_of_arrival() -> None:
    engine, _ = make_engine(max_num_seqs=1)
    for k in range(5):
        engine.add_request(make_request(str(k), [k + 1], tenant="only", max_tokens=2))
    order: list[str] = []
    while engine.has_unfinished:
        order += [delta.request_id for delta in engine.step() if delta.finish_reason]
    assert order == ["0", "1", "2", "3", "4"]


def test_who_is_preempted_in_vain_is_not_preempted() -> None:
    """The crowd's share holds all blocks: to preempt what is beyond it would make no room."""
    engine, _ = make_engine(num_blocks=32, max_num_seqs=4, budget=64, prefix_caching=False)
    for k, length in enumerate((50, 50, 4)):
        engine.add_request(
            make_request(
                str(k), [k + 1] * length, tenant="crowd", max_tokens=8, priority=0, ignore_eos=True
            )
        )
    for _ in range(3):
        engine.step()
    engine.add_request(make_request("large", [9] * 60, tenant="other", max_tokens=2))
    for _ in range(3):
        engine.step()
        engine.check()
    assert engine.stats().preemptions_total == 0
    assert engine.stats().num_requests_running == 3


def steps_beside_small_ones(engine: Engine, request_id: str, *, max_steps: int) -> int:
    """Until a request starts although another tenant has always something small to do."""
    for count in range(max_steps):
        for k in range(3):
            engine.add_request(
                make_request(
                    f"small-{count}-{k}", [count, k], tenant="crowd", max_tokens=4, ignore_eos=True
                )
            )
        deltas = engine.step()
        engine.check()
        if any(delta.request_id == request_id for delta in deltas):
            return count
    raise AssertionError("it starves")


def test_a_large_request_is_not_passed_by_anothers_small_ones_for_ever() -> None:
    engine, _ = make_engine(num_blocks=32, max_num_seqs=64, budget=128, prefix_caching=False)
    engine.add_request(make_request("first", [1, 2], tenant="crowd", max_tokens=4))
    engine.step()
    engine.add_request(make_request("large", [9] * 120, tenant="other", max_tokens=2))
    assert steps_beside_small_ones(engine, "large", max_steps=60) <= 5


def test_a_request_wider_than_its_tenants_share_is_served_beside_a_crowd() -> None:
    engine = crowded_engine(20)
    engine.add_request(make_request("wide", [5, 6], tenant="other", n=6, max_tokens=3))
    steps_beside_small_ones(engine, "wide", max_steps=90)


def test_a_wide_request_is_not_thrown_out_before_it_has_forked() -> None:
    engine, _ = make_engine(num_blocks=400, max_num_seqs=MAX_NUM_SEQS, budget=BUDGET)
    engine.add_request(make_request("wide", [3] * 100, tenant="wide", n=8, max_tokens=3))
    engine.step()
    engine.add_request(make_request("single", [7], tenant="other", max_tokens=3))
    for _ in range(3):
        engine.step()
    assert engine.stats().preemptions_total == 0, "more than half of its prompt is computed"
    while engine.has_unfinished:
        engine.step()
        engine.check()


def test_more_tenants_than_places_take_turns() -> None:
    engine = crowded_engine(1000)
    for k in range(MAX_NUM_SEQS + 4):
        engine.add_request(make_request(f"t{k}", [k + 1], tenant=f"t{k}", max_tokens=2))
    started = set()
    for _ in range(20):
        started |= {delta.request_id for delta in engine.step()}
        engine.check()
    assert {f"t{k}" for k in range(MAX_NUM_SEQS + 4)} <= started
