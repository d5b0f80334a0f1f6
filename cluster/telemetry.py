"""What one ingress process counts, and its Prometheus text.

Metric names are those that vLLM's users know, with the prefix `shoal:`. Everything is kept in plain
numbers, since one thread does all the counting and some of it happens for every token; Prometheus
objects exist only while somebody scrapes.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import NamedTuple, Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

CONTENT_TYPE = CONTENT_TYPE_LATEST
PREFIX = "shoal:"

FIRST_TOKEN_BUCKETS_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0),
)
INTER_TOKEN_BUCKETS_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3),
    *(0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
REQUEST_BUCKETS_S = (
    *(0.05, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0),
    *(30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0, 1920.0),
)


class ReplicaLoad(Protocol):
    """What a replica reports about itself."""

    @property
    def num_requests_running(self) -> int: ...
    @property
    def num_requests_waiting(self) -> int: ...
    @property
    def num_waiting_prefill_tokens(self) -> int: ...
    @property
    def kv_cache_usage(self) -> float:
        """Owned blocks as a share of all, 0 … 1."""
        ...

    # Of speculative decoding, since the replica's start: guesses, tokens of them, and those that
    # came true.
    @property
    def spec_decode_drafts_total(self) -> int: ...
    @property
    def spec_decode_draft_tokens_total(self) -> int: ...
    @property
    def spec_decode_accepted_tokens_total(self) -> int: ...


class Histogram:
    """Counts by bucket; cheap enough for every token."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, *, times: int = 1) -> None:
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def add_to(self, family: HistogramMetricFamily, labels: list[str]) -> None:
        bounds = [*map(str, self._bounds), "+Inf"]
        family.add_metric(
            labels, list(zip(bounds, accumulate(self._counts), strict=True)), self._sum
        )


class ModelMetrics:
    """The numbers of one model; hold on to it instead of looking it up."""

    __slots__ = (
        "e2e_request_latency",
        "generation_tokens",
        "inter_token_latency",
        "prompt_tokens",
        "retrieval",
        "time_to_first_token",
    )

    def __init__(self) -> None:
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.time_to_first_token = Histogram(FIRST_TOKEN_BUCKETS_S)
        self.inter_token_latency = Histogram(INTER_TOKEN_BUCKETS_S)
        self.e2e_request_latency = Histogram(REQUEST_BUCKETS_S)
        self.retrieval = Histogram(FIRST_TOKEN_BUCKETS_S)  # the search alone


class _RequestKind(NamedTuple):
    model: str
    route: str
    status: int
    finish_reason: str


class Telemetry:
    """All metrics of one ingress process. Not for use from several threads."""

    def __init__(self) -> None:
        self._models: dict[str, ModelMetrics] = {}
        self._requests: dict[_RequestKind, int] = {}
        self._loads: dict[str, Callable[[], Mapping[str, ReplicaLoad]]] = {}
        self._starts: dict[str, Callable[[], Mapping[str, Mapping[str, float]]]] = {}
        self._count_unlimited: Callable[[], int] = lambda: 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(_Families(self))

    def model(self, name: str) -> ModelMetrics:
        """The metrics of a served model. Never call it with a name that a client made up."""
        return self._models.setdefault(name, ModelMetrics())

    def count_request(
        self, *, model: str, route: str, status: int, finish_reason: str = ""
    ) -> None:
        """One HTTP request is over. Status 499: the client left."""
        kind = _RequestKind(model, route, status, finish_reason)
        self._requests[kind] = self._requests.get(kind, 0) + 1

    def watch_replicas(self, model: str, loads: Callable[[], Mapping[str, ReplicaLoad]]) -> None:
        """Ask `loads` for each replica's newest report whenever somebody scrapes."""
        self._loads[model] = loads

    def watch_starts(
        self, model: str, starts: Callable[[], Mapping[str, Mapping[str, float]]]
    ) -> None:
        """Ask `starts` for the seconds of each part of each replica's start, when scraped."""
        self._starts[model] = starts

    def watch_unlimited(self, count: Callable[[], int]) -> None:
        """Ask `count` how many requests ran without the limits of their tenants."""
        self._count_unlimited = count

    def exposition(self) -> bytes:
        """The page for Prometheus, of the type `CONTENT_TYPE`."""
        return generate_latest(self._registry)

    def families(self) -> Iterable[Metric]:
        yield self._request_family()
        yield self._unlimited_family()
        yield from self._token_families()
        yield from self._latency_families()
        yield from self._load_families()
        yield from self._speculation_families()
        yield self._start_family()

    def _request_family(self) -> Metric:
        labels = ["model_name", "route", "status", "finish_reason"]
        family = CounterMetricFamily(f"{PREFIX}requests", "HTTP requests", labels=labels)
        for kind, count in self._requests.items():
            values = [kind.model, kind.route, str(kind.status), kind.finish_reason]
            family.add_metric(values, count)
        return family

    def _unlimited_family(self) -> Metric:
        text = "Requests that ran without the limits of their tenants, while Redis was away"
        return CounterMetricFamily(
            f"{PREFIX}unlimited_requests", text, value=self._count_unlimited()
        )

    def _token_families(self) -> Iterable[Metric]:
        prompt = CounterMetricFamily(
            f"{PREFIX}prompt_tokens", "Prompt tokens of answered requests", labels=["model_name"]
        )
        generated = CounterMetricFamily(
            f"{PREFIX}generation_tokens", "Tokens generated", labels=["model_name"]
        )
        for name, metrics in self._models.items():
            prompt.add_metric([name], metrics.prompt_tokens)
            generated.add_metric([name], metrics.generation_tokens)
        return prompt, generated

    def _latency_families(self) -> Iterable[Metric]:
        def family(name: str, text: str) -> HistogramMetricFamily:
            return HistogramMetricFamily(f"{PREFIX}{name}_seconds", text, labels=["model_name"])

        first = family("time_to_first_token", "From the request to its first token")
        between = family("inter_token_latency", "Between two tokens of a sequence")
        whole = family("e2e_request_latency", "From the request to the end of its answer")
        search = family("retrieval", "Searching buckets for a request")
        for name, metrics in self._models.items():
            metrics.time_to_first_token.add_to(first, [name])
            metrics.inter_token_latency.add_to(between, [name])
            metrics.e2e_request_latency.add_to(whole, [name])
            metrics.retrieval.add_to(search, [name])
        return first, between, whole, search

    def _load_families(self) -> Iterable[Metric]:
        def family(name: str, text: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"{PREFIX}{name}", text, labels=["model_name", "replica"])

        running = family("num_requests_running", "Sequences in the engine's batch")
        waiting = family("num_requests_waiting", "Requests waiting for the engine")
        usage = family("kv_cache_usage_perc", "Share of KV blocks in use; 1 is all of them")
        for name, loads in self._loads.items():
            for replica, load in loads().items():
                running.add_metric([name, replica], load.num_requests_running)
                waiting.add_metric([name, replica], load.num_requests_waiting)
                usage.add_metric([name, replica], load.kv_cache_usage)
        return running, waiting, usage

    def _speculation_families(self) -> Iterable[Metric]:
        def family(name: str, text: str) -> CounterMetricFamily:
            labels = ["model_name", "replica"]
            return CounterMetricFamily(f"{PREFIX}spec_decode_num_{name}", text, labels=labels)

        drafts = family("drafts", "Guesses of next tokens that were verified")
        proposed = family("draft_tokens", "Tokens that were guessed")
        accepted = family("accepted_tokens", "Tokens that were guessed and came true")
        for name, loads in self._loads.items():
            for replica, load in loads().items():
                drafts.add_metric([name, replica], load.spec_decode_drafts_total)
                proposed.add_metric([name, replica], load.spec_decode_draft_tokens_total)
                accepted.add_metric([name, replica], load.spec_decode_accepted_tokens_total)
        return drafts, proposed, accepted

    def _start_family(self) -> Metric:
        family = GaugeMetricFamily(
            f"{PREFIX}replica_start_seconds",
            "How long each part of a replica's start took",
            labels=["model_name", "replica", "phase"],
        )
        for name, starts in self._starts.items():
            for replica, phases in starts().items():
                for phase, seconds in phases.items():
                    family.add_metric([name, replica, phase], seconds)
        return family


class _Families(Collector):
    """Prometheus's view of a `Telemetry`."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterable[Metric]:
        return self._telemetry.families()
