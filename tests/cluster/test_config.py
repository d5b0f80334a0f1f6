"""The configuration: what it refuses, and what it never shows."""

import pytest

from cluster.config import (
    ConfigError,
    EngineConfig,
    ShoalConfig,
    SpeculativeConfig,
    StorageConfig,
    parse_config,
)

MODELS = [{"name": "chat", "source": "unused"}]
SECRET = "0123456789-nobody-may-see-this"


def with_storage(**storage: object) -> ShoalConfig:
    return parse_config({"models": MODELS, "storage": storage})


@pytest.mark.parametrize(
    "name", ["{bucket}", "{tenant}-{bucket}", "x.{bucket}.of-{tenant}", "pre-{tenant}x-{bucket}"]
)
def test_a_bucket_at_the_endpoint_belongs_to_one_tenant(name: str) -> None:
    assert with_storage(s3_bucket_name=name).storage.s3_bucket_name == name


@pytest.mark.parametrize(
    "name",
    [
        "{tenant}",
        "{tenant}{bucket}",  # `a` with `bc` and `ab` with `c` would be the same
        "{bucket}x{tenant}",
        "{user}-{bucket}",
        "{bucket}-{",
    ],
)
def test_a_name_that_two_tenants_could_share_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"storage\.s3_bucket_name"):
        with_storage(s3_bucket_name=name)


def test_a_configuration_does_not_show_its_secrets() -> None:
    config = StorageConfig(
        s3_endpoint="https://s3.example.com", s3_access_key_id=SECRET, s3_secret_access_key=SECRET
    )
    assert SECRET not in repr(config)


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("storage", {"s3_secret_acces_key": SECRET}),  # misspelt
        ("storage", {"s3_secret_access_key": [SECRET]}),
        ("redis", {"url": [f"redis://:{SECRET}@host"]}),
        ("redis", {"password": SECRET}),
    ],
)
def test_a_mistake_in_a_secret_does_not_show_it(section: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))) as caught:
        parse_config({"models": MODELS, section: wrong})
    assert SECRET not in str(caught.value)


def test_a_mistake_is_shown_where_it_is_no_secret() -> None:
    with pytest.raises(ConfigError, match=r"http\.port: .*given: 'x'"):
        parse_config({"models": MODELS, "http": {"port": "x"}})


def with_model(**settings: object) -> ShoalConfig:
    return parse_config({"models": [{**MODELS[0], **settings}]})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_placement": "spread"}, r"tensor_parallel_size is 1"),
        ({"tensor_parallel_size": 4, "num_gpus": 2}, r"num_gpus \(2\) must be 0 or a multiple"),
        ({"tensor_parallel_size": 2, "num_cpus": 0}, r"the 2 ranks need something"),
    ],
)
def test_ranks_without_an_equal_part_each_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_model(**settings)


def test_ranks_share_what_the_replica_reserves() -> None:
    (model,) = with_model(tensor_parallel_size=4, num_gpus=4, rank_placement="spread").models
    assert model.rank_placement == "spread"


ADAPTER = {"name": "writer", "source": "org/writer"}


@pytest.mark.parametrize("settings", [{"adapters": [ADAPTER]}, {"adapter_folder": "/srv/adapters"}])
def test_a_model_with_adapters_has_slots_for_them(settings: dict[str, object]) -> None:
    limits = [
        with_model(**more).models[0].engine.max_loaded_adapters
        for more in (
            {},
            settings,
            {**settings, "engine": {"max_num_seqs": 4}},
            {**settings, "engine": {"max_loaded_adapters": 2}},
        )
    ]
    assert limits == [0, 8, 8, 2]
    config = with_model(**settings, engine={"max_lora_rank": 32})
    assert ShoalConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"engine": {"max_loaded_adapters": 0}},
            "max_loaded_adapters is 0, but there are adapters",
        ),
        ({"adapters": [ADAPTER, ADAPTER]}, "the name 'writer' is used twice"),
        ({"adapters": [{**ADAPTER, "name": MODELS[0]["name"]}]}, "is used twice"),
        ({"adapters": [{"name": "writer"}]}, "source"),
        ({"adapters": [{**ADAPTER, "rank": 8}]}, "rank"),
    ],
)
def test_adapters_that_could_not_be_used_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_model(**{"adapters": [ADAPTER], **settings})


@pytest.mark.parametrize(
    ("settings", "least", "most"),
    [
        ({}, 1, 1),
        ({"num_replicas": 3}, 3, 3),
        ({"max_replicas": 4}, 1, 4),
        ({"min_replicas": 0}, 0, 1),
        ({"min_replicas": 2}, 2, 2),
        ({"min_replicas": 0, "max_replicas": 5}, 0, 5),
    ],
)
def test_replicas_are_a_number_or_a_range(
    settings: dict[str, object], least: int, most: int
) -> None:
    config = with_model(**settings)
    (model,) = config.models
    assert (model.least_replicas, model.most_replicas) == (least, most)
    assert model.may_sleep == (least == 0)
    assert ShoalConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_replicas": 2, "max_replicas": 3}, r"fixed number and max_replicas \(3\) a range"),
        ({"min_replicas": 4, "max_replicas": 3}, r"\(3\) must be at least min_replicas \(4\)"),
        ({"max_replicas": 0}, r"greater than or equal to 1"),
        ({"autoscaling": {"max_hold_s": 5}}, r"autoscaling is about a range"),
        ({"max_replicas": 2, "autoscaling": {"no": 5}}, r"autoscaling\.no"),
    ],
)
def test_contradictions_about_replicas_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        with_model(**settings)


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"http": {"num_ingress_replicas": 3, "max_ingress_replicas": 2}},
            r"max_ingress_replicas \(2\) must be at least num_ingress_replicas \(3\)",
        ),
        (
            {"retrieval": {"num_task_workers": 2, "max_task_workers": 1}},
            r"max_task_workers \(1\) must be at least num_task_workers \(2\)",
        ),
    ],
)
def test_empty_ranges_of_ingresses_and_task_workers_are_refused(
    section: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"models": MODELS, **section})


def test_ingresses_and_task_workers_have_a_fixed_number_or_a_range() -> None:
    fixed = parse_config({"models": MODELS, "http": {"num_ingress_replicas": 2}})
    assert fixed.http.most_ingress_replicas == 2
    assert fixed.retrieval.most_task_workers == 1
    ranges = {"http": {"max_ingress_replicas": 4}, "retrieval": {"max_task_workers": 3}}
    config = parse_config({"models": MODELS, **ranges})
    assert config.http.most_ingress_replicas == 4
    assert config.retrieval.most_task_workers == 3


def test_a_model_may_have_aliases_and_the_default_may_be_one() -> None:
    config = parse_config({"models": [{**MODELS[0], "aliases": ["mini"]}], "default_model": "mini"})
    assert config.models[0].names == ("chat", "mini")
    assert config.default_model_name == "chat"


def test_an_alias_that_is_another_models_name_is_refused() -> None:
    models = [{**MODELS[0], "aliases": ["other"]}, {"name": "other", "source": "unused"}]
    with pytest.raises(ConfigError, match="the name 'other' is used twice"):
        parse_config({"models": models})


def test_guesses_need_a_range_of_matches_and_a_number() -> None:
    with pytest.raises(ConfigError, match=r"prompt_lookup_max \(2\) must be at least .*\(3\)"):
        with_model(engine={"speculative_config": {"prompt_lookup_max": 2}})
    with pytest.raises(ConfigError, match=r"num_speculative_tokens: .*greater than or equal to 1"):
        with_model(engine={"speculative_config": {"num_speculative_tokens": 0}})


@pytest.mark.parametrize(
    ("max_num_seqs", "num_rows"), [(1, 1 + 8), (8, 8 * 9), (100, 256), (256, 256 + 8)]
)
def test_a_step_has_rows_for_guesses(max_num_seqs: int, num_rows: int) -> None:
    config = EngineConfig(max_num_seqs=max_num_seqs, speculative_config=SpeculativeConfig())
    assert config.max_step_rows == num_rows
    off = config.model_copy(update={"speculative_config": None})
    assert off.max_step_rows == max_num_seqs
