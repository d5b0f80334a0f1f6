"""Counted numbers appear on the page for Prometheus, in a form that its parser reads."""

from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from cluster.telemetry import Telemetry


def samples(telemetry: Telemetry) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(telemetry.exposition().decode())
        for sample in family.samples
    }


def test_latencies_are_cumulative_histograms() -> None:
    telemetry = Telemetry()
    histogram = telemetry.model("m").time_to_first_token
    histogram.observe(0.001)  # exactly on a bound: belongs to that bucket
    histogram.observe(0.0015, times=3)
    histogram.observe(10_000)
    found = samples(telemetry)

    def bucket(bound: str) -> float:
        labels = (("le", bound), ("model_name", "m"))
        return found["shoal:time_to_first_token_seconds_bucket", labels]

    assert (bucket("0.001"), bucket("0.005"), bucket("640.0"), bucket("+Inf")) == (1, 4, 4, 5)
    model = (("model_name", "m"),)
    assert found["shoal:time_to_first_token_seconds_count", model] == 5
    assert found["shoal:time_to_first_token_seconds_sum", model] == 0.001 + 0.0015 * 3 + 10_000


def test_requests_are_counted_by_what_became_of_them() -> None:
    telemetry = Telemetry()
    for _ in range(2):
        telemetry.count_request(model="m", route="/r", status=200, finish_reason="stop")
    telemetry.count_request(model="", route="", status=404)
    found = samples(telemetry)
    good = (("finish_reason", "stop"), ("model_name", "m"), ("route", "/r"), ("status", "200"))
    bad = (("finish_reason", ""), ("model_name", ""), ("route", ""), ("status", "404"))
    assert found["shoal:requests_total", good] == 2
    assert found["shoal:requests_total", bad] == 1


def test_replicas_are_asked_at_each_scrape_and_vanish_with_their_replica() -> None:
    telemetry = Telemetry()
    loads = {
        "r1": SimpleNamespace(
            num_requests_running=4,
            num_requests_waiting=1,
            kv_cache_usage=0.5,
            spec_decode_drafts_total=3,
            spec_decode_draft_tokens_total=20,
            spec_decode_accepted_tokens_total=17,
        )
    }
    telemetry.watch_replicas("m", lambda: loads)
    labels = (("model_name", "m"), ("replica", "r1"))
    assert samples(telemetry)["shoal:num_requests_running", labels] == 4
    assert samples(telemetry)["shoal:num_requests_waiting", labels] == 1
    assert samples(telemetry)["shoal:kv_cache_usage_perc", labels] == 0.5
    assert samples(telemetry)["shoal:spec_decode_num_drafts_total", labels] == 3
    assert samples(telemetry)["shoal:spec_decode_num_draft_tokens_total", labels] == 20
    assert samples(telemetry)["shoal:spec_decode_num_accepted_tokens_total", labels] == 17
    loads.clear()
    assert ("shoal:num_requests_running", labels) not in samples(telemetry)


def test_the_parts_of_a_replicas_start_are_on_the_page() -> None:
    telemetry = Telemetry()
    telemetry.watch_starts("m", lambda: {"r1": {"weights": 2.5, "kv_cache": 0.5}})
    found = samples(telemetry)
    labels = (("model_name", "m"), ("phase", "weights"), ("replica", "r1"))
    assert found["shoal:replica_start_seconds", labels] == 2.5


def test_a_model_is_on_the_page_before_its_first_request() -> None:
    telemetry = Telemetry()
    telemetry.model("m").prompt_tokens += 5
    assert telemetry.model("m").prompt_tokens == 5
    found = samples(telemetry)
    assert found["shoal:prompt_tokens_total", (("model_name", "m"),)] == 5
    assert found["shoal:generation_tokens_total", (("model_name", "m"),)] == 0


def test_requests_without_their_limits_are_counted() -> None:
    telemetry = Telemetry()
    assert b"shoal:unlimited_requests_total 0.0" in telemetry.exposition()
    telemetry.watch_unlimited(lambda: 3)
    assert b"shoal:unlimited_requests_total 3.0" in telemetry.exposition()
