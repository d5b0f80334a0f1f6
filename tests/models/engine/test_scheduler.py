"""The scheduler and the block manager under a runner that checks every read of the KV cache."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.config import EngineConfig
from cluster.types import FinishReason, Request, SamplingParams
from models.engine.engine import Engine
from models.engine.prompt_share import PromptShare
from models.engine.randomness import derive_seed
from tests.models.engine.kv_simulator import KVSimulator, next_token


def make_engine(
    *,
    num_blocks: int = 64,
    block_size: int = 4,
    max_model_len: int = 128,
    max_num_seqs: int = 8,
    budget: int = 16,
    prefix_caching: bool = True,
    max_batch_slowdown: float | None = None,
    max_prompt_slowdown: float | None = None,
    num_layers_apart: int = 0,
) -> tuple[Engine, KVSimulator]:
    runner = KVSimulator(
        num_blocks=num_blocks,
        block_size=block_size,
        max_model_len=max_model_len,
        num_layers_apart=num_layers_apart,
    )
    config = EngineConfig(
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=budget,
        enable_prefix_caching=prefix_caching,
        max_batch_slowdown=max_batch_slowdown,
        max_prompt_slowdown=max_prompt_slowdown,
    )
    return Engine(runner, config), runner


def make_request(
    request_id: str,
    prompt: list[int],
    *,
    priority: int = 0,
    salt: str = "",
    tenant: str = "",
    **params: object,
) -> Request:
    return Request(
        request_id=request_id,
        prompt_token_ids=prompt,
        sampling_params=SamplingParams(**params),  # type: ignore[arg-type]
        priority=priority,
        cache_salt=salt,
        tenant=tenant,
    )


def run(engine: Engine) -> dict[tuple[str, int], list[int]]:
    """Step until nothing is left; the books are checked after every step."""
    outputs: dict[tuple[str, int], list[int]] = {}
    for _ in range(10_000):
        if not engine.has_unfinished:
            return outputs
        for delta in engine.step():
            outputs.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
        engine.check()
    raise AssertionError("the engine does not finish")


def expected_output(prompt: list[int], max_tokens: int, *, limit: int = 128) -> list[int]:
    output: list[int] = []
    while len(output) < max_tokens and len(prompt) + len(output) < limit:
        output.append(next_token(prompt + output))
        if output[-1] == 13:
            break
    return output


def test_output_depends_only_on_the_request() -> None:
    engine, _ = make_engine()
    prompts = [list(range(k, k + 3 + 5 * k)) for k in range(6)]
    for k, prompt in enumerate(prompts):
        engine.add_request(make_request(str(k), prompt, max_tokens=20))
    outputs = run(engine)
    for k, prompt in enumerate(prompts):
        assert outputs[(str(k), 0)] == expected_output(prompt, 20)


def test_a_long_prompt_does_not_stall_a_running_sequence() -> None:
    engine, _ = make_engine(budget=8)
    engine.add_request(make_request("short", [1, 2, 3], max_tokens=12, ignore_eos=True))
    engine.step()
    engine.add_request(make_request("long", list(range(60)), max_tokens=1))
    for _ in range(8):
        deltas = engine.step()
        assert "short" in {delta.request_id for delta in deltas}


def test_a_second_request_reuses_the_blocks_of_a_shared_prefix() -> None:
    engine, runner = make_engine()
    prefix = list(range(40))
    engine.add_request(make_request("first", [*prefix, 50], max_tokens=2, ignore_eos=True))
    run(engine)
    before = runner.num_computed_tokens
    engine.add_request(make_request("second", [*prefix, 51], max_tokens=1))
    (delta,) = [d for _ in range(3) for d in engine.step()]
    assert delta.num_cached_tokens == 40
    assert runner.num_computed_tokens - before == 1


def test_requests_that_arrive_together_share_their_prefix_in_the_same_step() -> None:
    engine, runner = make_engine(budget=64)
    prefix = list(range(32))
    for k in range(4):
        engine.add_request(make_request(str(k), [*prefix, 60 + k], max_tokens=1))
    outputs = run(engine)
    assert runner.num_computed_tokens == 33 + 3
    assert outputs[("3", 0)] == expected_output([*prefix, 63], 1)


def test_prefixes_are_not_shared_across_salts() -> None:
    engine, runner = make_engine(budget=64)
    for salt in ("a", "b"):
        engine.add_request(make_request(salt, list(range(33)), salt=salt, max_tokens=1))
        run(engine)
    assert runner.num_computed_tokens == 66


def test_forks_share_the_prompt_and_then_go_their_own_ways() -> None:
    engine, runner = make_engine(budget=64)
    runner.uses_seed = True
    prompt = list(range(30))
    engine.add_request(
        make_request("r", prompt, n=4, seed=5, max_tokens=6, ignore_eos=True, temperature=1.0)
    )
    outputs = run(engine)
    assert runner.num_computed_tokens == 30 + 4 * 5
    for index in range(4):
        expected: list[int] = []
        for _ in range(6):
            expected.append(next_token(prompt + expected, derive_seed(5, index)))
        assert outputs[("r", index)] == expected


def test_preemption_recomputes_and_changes_nothing() -> None:
    engine, _ = make_engine(num_blocks=32, max_model_len=128, budget=16)
    prompts = [[k + 1] * 20 for k in range(6)]
    for k, prompt in enumerate(prompts):
        engine.add_request(make_request(str(k), prompt, max_tokens=40, ignore_eos=True))
    outputs = run(engine)
    assert engine.stats().preemptions_total > 0
    for k, prompt in enumerate(prompts):
        expected: list[int] = []
        for _ in range(40):
            expected.append(next_token(prompt + expected))
        assert outputs[(str(k), 0)] == expected


def test_a_more_important_request_takes_the_blocks_of_a_lesser_one_within_one_step() -> None:
    engine, _ = make_engine(num_blocks=32, max_num_seqs=4, budget=128)
    for k in range(4):
        engine.add_request(
            make_request(f"batch-{k}", [k] * 30, priority=100, max_tokens=60, ignore_eos=True)
        )
    engine.step()
    engine.add_request(make_request("online", [9] * 40, max_tokens=4, ignore_eos=True))
    first = engine.step()
    assert "online" in {delta.request_id for delta in first}
    assert engine.stats().preemptions_total >= 1
    assert len(run(engine)[("batch-3", 0)]) > 0


def test_a_row_without_finite_logits_ends_its_own_sequence_only() -> None:
    engine, runner = make_engine()
    runner.failing_prompt = [6, 6, 6]
    engine.add_request(make_request("broken", [6, 6, 6], max_tokens=4, n=2))
    engine.add_request(make_request("whole", [1, 2, 3], max_tokens=4, ignore_eos=True))
    deltas = engine.step()
    assert [(d.request_id, d.finish_reason) for d in deltas if d.request_id == "broken"] == [
        ("broken", FinishReason.ERROR),
        ("broken", FinishReason.ERROR),
    ]
    assert len(run(engine)[("whole", 0)]) == 3
    assert engine.stats().num_free_blocks == 64


def test_the_context_limit_ends_a_sequence_with_length() -> None:
    engine, _ = make_engine(max_model_len=16, num_blocks=8)
    engine.add_request(make_request("r", [1, 2, 3], ignore_eos=True))
    deltas = []
    while engine.has_unfinished:
        deltas += engine.step()
    assert deltas[-1].finish_reason is FinishReason.LENGTH
    assert len(deltas) == 13


def test_min_tokens_forbids_stop_tokens_and_stop_token_ids_end_a_sequence() -> None:
    prompt = [3, 1, 4]
    free = expected_output(prompt, 30)
    stop = free[4]
    engine, _ = make_engine()
    engine.add_request(make_request("r", prompt, stop_token_ids=(stop,), max_tokens=30))
    first_stop = free.index(stop)
    assert run(engine)[("r", 0)] == free[: first_stop + 1]
    engine.add_request(
        make_request("s", prompt, stop_token_ids=(stop,), min_tokens=12, max_tokens=30)
    )
    output = run(engine)[("s", 0)]
    assert len(output) >= 12
    assert stop not in output[:12]


def test_aborting_frees_every_block_at_any_moment() -> None:
    engine, _ = make_engine(budget=8)
    for moment in range(12):
        engine.add_request(make_request("r", list(range(30)), n=3, max_tokens=5, ignore_eos=True))
        for _ in range(moment):
            engine.step()
        engine.abort_request("r")
        engine.check()
        assert engine.stats().num_free_blocks == 64
        assert not engine.has_unfinished


def test_aborting_one_of_a_requests_sequences_frees_its_own_blocks_and_leaves_the_others() -> None:
    engine, _ = make_engine()
    prompt = list(range(30))
    engine.add_request(make_request("r", prompt, n=3, max_tokens=12, ignore_eos=True))
    outputs: dict[int, list[int]] = {0: [], 1: [], 2: []}
    while engine.has_unfinished:
        for delta in engine.step():
            outputs[delta.index].extend(delta.token_ids)
        if len(outputs[1]) == 6:
            before = engine.stats()
            engine.abort_request("r", 1)
            engine.check()
            if before.num_requests_running == 3:
                assert engine.stats().num_requests_running == 2
                assert engine.stats().num_free_blocks > before.num_free_blocks
    assert [len(outputs[index]) for index in range(3)] == [12, 6, 12]
    assert outputs[0] == outputs[2]
    assert engine.stats().num_free_blocks == 64


def test_a_sequence_that_has_not_forked_yet_is_not_aborted_alone() -> None:
    engine, _ = make_engine(budget=8)
    engine.add_request(make_request("r", list(range(30)), n=2, max_tokens=2, ignore_eos=True))
    engine.abort_request("r", 0)
    engine.step()
    engine.abort_request("r", 0)
    assert {key: len(output) for key, output in run(engine).items()} == {("r", 0): 2, ("r", 1): 2}


def test_requests_that_can_never_be_served_are_refused_with_both_numbers() -> None:
    engine, _ = make_engine(max_model_len=16, num_blocks=8)
    with pytest.raises(Exception, match=r"20 tokens.*16 tokens.*at most 15"):
        engine.add_request(make_request("long", [1] * 20))
    with pytest.raises(Exception, match=r"0 to 96"):
        engine.add_request(make_request("strange", [1, 97]))
    with pytest.raises(Exception, match=r"at least one token"):
        engine.add_request(make_request("empty", []))
    with pytest.raises(Exception, match=r"n is 9.*at most 8"):
        engine.add_request(make_request("many", [1], n=9))
    assert not engine.has_unfinished


prompts_with_common_beginnings = st.builds(
    lambda shared, own: list(range(shared)) + own,
    st.integers(0, 24),
    st.lists(st.integers(0, 96), min_size=1, max_size=20),
)
operations = st.lists(
    st.one_of(
        st.tuples(
            st.just("add"),
            prompts_with_common_beginnings,
            st.integers(1, 4),  # n
            st.integers(1, 24),  # max_tokens
            st.sampled_from([0, 0, 100]),  # priority
            st.sampled_from(["", "", "other", "third"]),  # tenant
            st.sampled_from([None, None, 1]),  # prompt_logprobs
        ),
        st.tuples(st.just("interrupt")),
        st.tuples(st.just("step"), st.integers(1, 6)),
        st.tuples(st.just("abort"), st.integers(0, 30)),
        st.tuples(st.just("abort one"), st.integers(0, 30), st.integers(0, 3)),
    ),
    min_size=5,
    max_size=40,
)


class Script:
    """Carries out random operations and remembers what has to come of them."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.requests: dict[str, tuple[list[int], int, int]] = {}
        self.aborted: set[str] = set()
        self.ended: set[tuple[str, int]] = set()  # sequences aborted alone, if they were there
        self.outputs: dict[tuple[str, int], list[int]] = {}
        self.finished: set[tuple[str, int]] = set()

    def carry_out(self, operation: tuple) -> None:
        match operation:
            case ("interrupt",):
                self.engine.interrupt()
            case ("add", prompt, n, max_tokens, priority, tenant, prompt_logprobs):
                request_id = str(len(self.requests))
                self.requests[request_id] = (prompt, n, max_tokens)
                params = {"n": n, "max_tokens": max_tokens, "prompt_logprobs": prompt_logprobs}
                self.engine.add_request(
                    make_request(request_id, prompt, priority=priority, tenant=tenant, **params)
                )
            case ("step", count):
                for _ in range(count):
                    self.step()
            case ("abort", number):
                if str(number) in self.requests:
                    self.aborted.add(str(number))
                self.engine.abort_request(str(number))
                self.engine.check()
            case ("abort one", number, index):
                self.ended.add((str(number), index))
                self.engine.abort_request(str(number), index)
                self.engine.check()

    def step(self) -> None:
        for delta in self.engine.step():
            key = (delta.request_id, delta.index)
            assert delta.request_id not in self.aborted
            assert key not in self.finished
            self.outputs.setdefault(key, []).extend(delta.token_ids)
            if delta.finish_reason is not None:
                self.finished.add(key)
        self.engine.check()

    def finish(self) -> None:
        for _ in range(5_000):
            if not self.engine.has_unfinished:
                return
            self.step()
        raise AssertionError("a request starves")


def with_a_stream(**limits: object) -> tuple[Engine, KVSimulator]:
    """An engine in which a stream decodes, and long prompts get as little as may be."""
    engine, runner = make_engine(max_prompt_slowdown=1e-9, **limits)  # type: ignore[arg-type]
    engine.add_request(make_request("stream", [3, 4], max_tokens=100, ignore_eos=True))
    engine.step()
    return engine, runner


def first_token_steps(engine: Engine, *request_ids: str, max_steps: int = 60) -> dict[str, int]:
    """By request, the number of the step, from now on, that brings its first token."""
    found: dict[str, int] = {}
    for number in range(1, max_steps + 1):
        for delta in engine.step():
            found.setdefault(delta.request_id, number)
        engine.check()
        if found.keys() >= set(request_ids):
            break
    return found


def test_a_long_prompt_gets_little_of_the_steps_of_streams_and_is_read_nevertheless() -> None:
    engine, runner = with_a_stream()
    engine.add_request(make_request("long", list(range(20, 60)), max_tokens=1))
    before = runner.num_computed_tokens
    steps = first_token_steps(engine, "long")["long"]
    assert 40 / runner.min_prompt_tokens <= steps <= 40 / runner.min_prompt_tokens + 4
    assert runner.num_computed_tokens - before == steps + 40


def test_a_prompt_that_fits_one_step_is_read_in_one_beside_streams_and_long_prompts() -> None:
    engine, _ = with_a_stream()
    for name in ("long", "longer"):
        engine.add_request(make_request(name, list(range(20, 60)), max_tokens=1))
    engine.step()
    engine.add_request(make_request("short", [70, 71, 72, 73, 74, 75, 76, 77], max_tokens=1))
    assert first_token_steps(engine, "short") == {"stream": 1, "short": 1}


def test_without_streams_a_long_prompt_has_whole_steps() -> None:
    engine, _ = make_engine(max_prompt_slowdown=1e-9)
    engine.add_request(make_request("long", list(range(20, 60)), max_tokens=1))
    assert first_token_steps(engine, "long") == {"long": 3}


def test_of_a_long_prompt_only_what_is_not_cached_counts() -> None:
    engine, _ = with_a_stream()
    prompt = list(range(20, 60))
    engine.add_request(make_request("long", prompt, max_tokens=1))
    first_token_steps(engine, "long")
    engine.add_request(make_request("again", [*prompt, 70, 71, 72], max_tokens=1))
    assert first_token_steps(engine, "again")["again"] == 1


@settings(max_examples=300)
@given(
    operations,
    st.sampled_from([1, 2, 4, 7]),  # block size
    st.sampled_from([8, 11, 32]),  # budget
    st.booleans(),
    st.integers(0, 30),  # blocks beyond one sequence's
    st.sampled_from([None, None, 0.05]),
    st.sampled_from([(None, 0), (1, 0), (5, 0), (1, 3), (5, 3), (9, 3)]),  # and layers apart
)
def test_random_operations_never_lose_mix_up_or_starve_anything(
    operations: list[tuple],
    block_size: int,
    budget: int,
    prefix_caching: bool,
    spare: int,
    max_batch_slowdown: float | None,
    long_prompts: tuple[int | None, int],  # tokens of steps with streams
) -> None:
    limit = 56
    engine, _ = make_engine(
        num_blocks=-(-limit // block_size) + spare,
        block_size=block_size,
        max_model_len=limit,
        budget=budget,
        prefix_caching=prefix_caching,
        max_batch_slowdown=max_batch_slowdown,
        max_prompt_slowdown=None if long_prompts[0] is None else 0.5,
        num_layers_apart=long_prompts[1],
    )
    script = Script(engine)
    with pytest.MonkeyPatch.context() as patch:
        if long_prompts[0] is not None:
            patch.setattr(PromptShare, "num_tokens", lambda self: long_prompts[0])
        for operation in operations:
            script.carry_out(operation)
        script.finish()
    assert engine.stats().num_free_blocks == engine.stats().num_blocks
    for request_id, (prompt, n, max_tokens) in script.requests.items():
        if request_id not in script.aborted:
            expected = expected_output(prompt, max_tokens, limit=limit)
            for index in range(n):
                output = script.outputs.get((request_id, index), [])
                if (request_id, index) in script.ended:
                    assert output == expected[: len(output)]
                else:
                    assert output == expected
