"""The runner that computes nothing: its tokens, and adapters that take slots and change nothing."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from cluster.config import ModelConfig, parse_config
from cluster.errors import BadRequestError, ServingError
from cluster.model_source import DEMO_SOURCE, resolve_model_source
from cluster.types import Request, SamplingParams
from models.adapters.checkpoint import CONFIG_FILE
from models.engine.build import build_engine
from models.engine.engine import Engine
from tests.models.adapters.adapter_samples import make_adapter

NAMES = ("one", "two", "broken")


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    demo = Path(resolve_model_source(DEMO_SOURCE))
    for seed, name in enumerate(NAMES):
        make_adapter(tmp_path / name, demo, seed=seed)
    (tmp_path / "broken" / CONFIG_FILE).write_text("{")
    model = {
        "name": "m",
        "source": DEMO_SOURCE,
        "engine": {"synthetic_step_ms": 0, "max_loaded_adapters": 1},
        "adapters": [{"name": name, "source": str(tmp_path / name)} for name in NAMES],
    }
    config: ModelConfig = parse_config({"models": [model]}).models[0]
    with closing(build_engine(config, demo, find_adapter=lambda name: tmp_path / name)) as made:
        yield made


def run(engine: Engine, adapter: str) -> tuple[list[int], dict[str, ServingError]]:
    """The tokens of a request, and what failed."""
    request = Request(
        request_id="r",
        prompt_token_ids=[100],
        sampling_params=SamplingParams(max_tokens=3, ignore_eos=True),
        adapter=adapter,
    )
    engine.add_request(request)
    token_ids: list[int] = []
    failures: dict[str, ServingError] = {}
    while engine.has_unfinished:
        step = engine.step()
        failures |= step.failures
        token_ids += [token_id for delta in step for token_id in delta.token_ids]
        if engine.is_stalled:
            engine.wait_for_adapters()
    return token_ids, failures


def test_adapters_take_their_slots_and_change_nothing(engine: Engine) -> None:
    for adapter in ("", "one", "two", "one"):
        assert run(engine, adapter) == ([101, 102, 103], {})
        assert engine.stats().loaded_adapters == ([adapter] if adapter else [])


def test_an_adapter_that_no_model_could_use_is_refused(engine: Engine) -> None:
    token_ids, failures = run(engine, "broken")
    assert token_ids == []
    assert isinstance(failures["r"], BadRequestError)
