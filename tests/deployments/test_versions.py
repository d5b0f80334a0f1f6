"""What replaces replicas, and what does not."""

import pytest

from cluster.config import ShoalConfig, parse_config
from deployments import versions
from deployments.versions import (
    embedder_version,
    ingress_version,
    model_version,
    retrieval_version,
    task_worker_version,
)


def config_with(model: dict[str, object] | None = None, **more: object) -> ShoalConfig:
    return parse_config({"models": [{"name": "chat", "source": "demo", **(model or {})}], **more})


def of_the_model(**settings: object) -> str:
    (model,) = config_with(settings).models
    return model_version(model, "INFO")


@pytest.mark.parametrize(
    "settings",
    [
        {"source": "elsewhere"},
        {"dtype": "float32"},
        {"tensor_parallel_size": 2},
        {"engine": {"max_num_seqs": 7}},
    ],
)
def test_what_the_engine_is_made_of_replaces_a_models_replicas(
    settings: dict[str, object],
) -> None:
    assert of_the_model(**settings) != of_the_model()


@pytest.mark.parametrize("settings", [{"num_replicas": 3}, {"defaults": {"temperature": 1.0}}])
def test_their_number_and_what_the_ingress_does_with_them_do_not(
    settings: dict[str, object],
) -> None:
    assert of_the_model(**settings) == of_the_model()


def test_other_models_do_not_concern_a_model_nor_the_ingress_process_nor_retrieval() -> None:
    one = config_with()
    two = parse_config(
        {
            "models": [*(model.model_dump() for model in one.models), {"name": "b", "source": "x"}],
            "default_model": "b",
        }
    )
    assert model_version(one.models[0], "INFO") == model_version(two.models[0], "INFO")
    assert ingress_version(one) == ingress_version(two)
    assert retrieval_version(one) == retrieval_version(two)
    assert task_worker_version(one) != task_worker_version(two)
    embedder = one.embedders[0]
    assert embedder_version(embedder, "INFO") == embedder_version(two.embedders[0], "INFO")


def test_where_it_listens_replaces_the_ingress_alone() -> None:
    one, other = config_with(http={"port": 8001}), config_with(http={"port": 8002})
    assert ingress_version(one) != ingress_version(other)
    assert task_worker_version(one) == task_worker_version(other)


def test_other_code_replaces_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    before = of_the_model(), ingress_version(config_with())
    monkeypatch.setattr(versions, "_code_digest", lambda: "another")
    after = of_the_model(), ingress_version(config_with())
    assert before[0] != after[0]
    assert before[1] != after[1]
