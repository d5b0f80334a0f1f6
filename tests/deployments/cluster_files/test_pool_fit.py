"""What finds a place on which nodes, computed in the head."""

from pathlib import Path
from typing import Any

import pytest

from cluster.config import ModelConfig, parse_config
from deployments.cluster_files.pool_fit import NodeType, check_fit, weight_gib

HEAD = NodeType(name="head", cpus=2, gpus=0, max_nodes=1, is_head=True)
CONFIG_OF_70B = Path(__file__).resolve().parents[2] / "data" / "llama_3_1_70b"


def served(*models: dict[str, Any], **rest: Any) -> Any:
    named = [{"name": f"m{i}", "source": "demo", **model} for i, model in enumerate(models)]
    return parse_config({"models": named, "embedders": [], **rest})


def workers(cpus: float, gpus: float, max_nodes: int, gpu: str = "") -> NodeType:
    return NodeType(name="w", cpus=cpus, gpus=gpus, max_nodes=max_nodes, gpu=gpu)


def test_a_replica_is_never_split_over_nodes() -> None:
    config = served({"num_gpus": 2, "tensor_parallel_size": 2})
    assert check_fit(config, [HEAD, workers(8, 2, 1)]).problems == []
    (problem,) = check_fit(config, [HEAD, workers(8, 1, 2)]).problems
    assert "a replica needs 1 CPUs and 2 GPUs on one node; none has that" in problem


def test_ranks_that_may_be_spread_are_placed_one_by_one() -> None:
    config = served({"num_gpus": 2, "tensor_parallel_size": 2, "rank_placement": "spread"})
    assert check_fit(config, [HEAD, workers(8, 1, 2)]).problems == []


def test_pools_share_the_nodes() -> None:
    config = served({"num_replicas": 3, "num_cpus": 2})
    assert check_fit(config, [HEAD, workers(4, 0, 2)]).problems == []
    (problem,) = check_fit(config, [HEAD, workers(4, 0, 1)]).problems
    assert "too few of these are left" in problem


def test_what_runs_on_the_head_needs_room_there() -> None:
    head = NodeType(name="head", cpus=0, gpus=0, max_nodes=1, is_head=True)
    (problem,) = check_fit(served({}), [head, workers(8, 0, 1)]).problems
    assert problem.startswith("http: a replica needs 0.1 CPUs and 0 GPUs on the head")


def test_what_cannot_grow_to_its_most_is_noted() -> None:
    embedder = {"name": "e", "source": "demo", "num_cpus": 1, "max_replicas": 4}
    config = served({"num_cpus": 0.1}, embedders=[embedder])
    fit = check_fit(config, [HEAD, workers(1, 0, 1)])
    assert fit.problems == []
    assert fit.notes == ["with every pool at its most, there is no place for all of: embedders.e"]


def test_ingresses_and_task_workers_count_at_their_most_too() -> None:
    config = served(
        {"num_cpus": 0.1},
        embedders=[{"name": "e", "source": "demo", "num_cpus": 0.1}],
        http={"max_ingress_replicas": 8},
        retrieval={"max_task_workers": 20},
    )
    fit = check_fit(config, [HEAD])
    assert fit.problems == []
    assert "task workers" in fit.notes[0]


def test_a_models_range_counts_from_its_first_replica_to_its_last() -> None:
    config = served({"num_cpus": 2, "min_replicas": 0, "max_replicas": 3})
    assert check_fit(config, [HEAD, workers(2, 0, 3)]).notes == []
    fit = check_fit(config, [HEAD, workers(2, 0, 1)])
    assert fit.problems == []
    assert "models.m0" in fit.notes[0]
    assert check_fit(config, [HEAD, workers(1, 0, 3)]).problems, "it is started once"


def model(**fields: Any) -> ModelConfig:
    return ModelConfig(name="m", **fields)


@pytest.mark.parametrize(
    ("fields", "gib"),
    [
        ({"source": "a/Llama-3.1-8B-Instruct"}, 14.9),
        ({"source": "a/Llama-3.1-70B-Instruct", "dtype": "bfloat16"}, 130.4),
        ({"source": "a/Llama-3.1-70B-Instruct", "quantization": "fp8"}, 65.2),
        ({"source": "a/Qwen3-0.6B", "dtype": "float32"}, 2.2),
        ({"source": str(CONFIG_OF_70B)}, 131.4),
    ],
)
def test_the_size_of_weights_comes_from_the_checkpoint_or_its_name(
    fields: dict[str, Any], gib: float
) -> None:
    assert weight_gib(model(**fields)) == pytest.approx(gib, abs=0.1)


@pytest.mark.parametrize("source", ["a/mystery", "a/phi-4-mini", "a/v2B3"])
def test_of_a_model_that_does_not_tell_its_size_nothing_is_said(source: str) -> None:
    assert weight_gib(model(source=source)) is None


def test_a_gpu_that_is_too_small_is_named_with_both_numbers() -> None:
    config = served({"source": "a/x-8B", "num_gpus": 1})
    assert check_fit(config, [HEAD, workers(4, 1, 1, "L4")]).problems == []
    (problem,) = check_fit(config, [HEAD, workers(4, 1, 1, "T4")]).problems
    assert "needs 15.9 GiB" in problem
    assert "has 13.5 GiB" in problem


def test_a_large_model_without_a_gpu_is_named() -> None:
    (problem,) = check_fit(served({"source": "a/x-70B"}), [HEAD]).problems
    assert problem == "models.m0: num_gpus is 0, but its weights take 130 GiB"
