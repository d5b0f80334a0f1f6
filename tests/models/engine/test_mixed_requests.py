"""Adapters, beams, forks, resumed requests, tenants and steps given up midway, all at once."""

import random
from pathlib import Path
from typing import Any

import pytest

from cluster.config import EngineConfig
from cluster.types import PRIORITY_BATCH, BeamParams, Request, SamplingParams
from models.engine.adapter_slots import AdapterSlots
from models.engine.engine import Engine
from tests.models.engine.test_adapter_slots import SlotSimulator
from tests.models.engine.test_scheduler import expected_output

LIMIT = 40
BLOCK_SIZE = 4
ADAPTERS = ["", "a", "b", "c"]


def make_engine(num_blocks: int, **config: Any) -> tuple[Engine, SlotSimulator]:
    runner = SlotSimulator(2, num_blocks=num_blocks, block_size=BLOCK_SIZE, max_model_len=LIMIT)
    # The adapter of a prompt is told by its first token.
    runner.names = {token: ADAPTERS[token % 4] for token in range(97)}
    slots = AdapterSlots(runner, Path, check_period_s=1000.0)
    return Engine(runner, EngineConfig(**config), adapters=slots), runner


def random_request(chance: random.Random, number: int) -> Request:
    prompt = [chance.randrange(8), *([5, 6, 7, 8] * chance.randrange(5)), chance.randrange(97)]
    max_tokens = chance.randint(2, 16)
    kind = chance.choice(["plain", "plain", "beams", "forks", "resumed"])
    width = chance.randint(1, 5)
    resumed = None
    if kind == "resumed":
        so_far = expected_output(prompt, max_tokens, limit=LIMIT)[: max_tokens // 2]
        resumed = {1: [token for token in so_far if token != 13]} if 13 not in so_far else None
    params = SamplingParams(
        n=width if kind == "forks" else 2 if resumed else 1,
        max_tokens=max_tokens,
        beam=BeamParams(width=width) if kind == "beams" else None,
    )
    return Request(
        request_id=str(number),
        prompt_token_ids=prompt,
        sampling_params=params,
        adapter=ADAPTERS[prompt[0] % 4],
        tenant=chance.choice(["", "one", "two", "three"]),
        priority=chance.choice([0, 0, PRIORITY_BATCH]),
        resumed=resumed,
    )


def step(engine: Engine, outputs: dict[tuple[str, int], list[int]]) -> None:
    deltas = engine.step()
    assert not deltas.failures
    for delta in deltas:
        outputs.setdefault((delta.request_id, delta.index), []).extend(delta.token_ids)
    engine.check()
    if engine.is_stalled:
        engine.wait_for_adapters()


def run(engine: Engine, outputs: dict[tuple[str, int], list[int]]) -> None:
    for _ in range(5_000):
        if not engine.has_unfinished:
            return
        step(engine, outputs)
    raise AssertionError("a request starves")


def expected(request: Request, index: int) -> list[int]:
    params = request.sampling_params
    if params.beam is not None:
        engine, _ = make_engine(200, max_num_seqs=8)
        outputs: dict[tuple[str, int], list[int]] = {}
        engine.add_request(request)
        run(engine, outputs)
        return outputs[(request.request_id, index)]
    assert params.max_tokens is not None
    whole = expected_output(request.prompt_token_ids, params.max_tokens, limit=LIMIT)
    return whole[len((request.resumed or {}).get(index, [])) :]


@pytest.mark.parametrize("seed", range(100))
def test_all_kinds_of_requests_end_as_if_each_were_alone(seed: int) -> None:
    chance = random.Random(seed)
    engine, _ = make_engine(
        chance.randint(10, 24),
        max_num_seqs=chance.randint(5, 9),
        max_num_batched_tokens=chance.choice([9, 16, 64]),
        enable_prefix_caching=chance.random() < 0.7,
        max_batch_slowdown=chance.choice([None, 0.05]),
    )
    requests: list[Request] = []
    aborted: set[str] = set()
    outputs: dict[tuple[str, int], list[int]] = {}
    for _ in range(60):
        if chance.random() < 0.4:
            requests.append(random_request(chance, len(requests)))
            engine.add_request(requests[-1])
        if chance.random() < 0.3:
            engine.interrupt()
        if requests and chance.random() < 0.1:
            aborted.add(chance.choice(requests).request_id)
            for request_id in sorted(aborted):
                engine.abort_request(request_id)
        step(engine, outputs)
    run(engine, outputs)
    stats = engine.stats()
    assert stats.num_free_blocks == stats.num_blocks
    for request in requests:
        if request.request_id not in aborted:
            for index in request.indices:
                assert outputs[(request.request_id, index)] == expected(request, index)
