"""`shoal.yaml`: read once, checked at once, unknown keys refused.

`load_config(path)` gives a frozen `ShoalConfig`; a mistake raises `ConfigError` with one readable
line per problem. The environment overrides: SHOAL_HOME, SHOAL_PORT, SHOAL_REDIS_URL, SHOAL_API_KEY.
"""

import os
import re
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    IPvAnyNetwork,
    ValidationError,
    field_validator,
    model_validator,
)

from cluster.adapter_config import DEFAULT_LOADED_ADAPTERS, AdapterConfig
from cluster.batch_config import BatchConfig
from cluster.provider_config import DEFAULT_PROVIDERS, ProviderConfig, check_providers
from cluster.scaling_config import ReplicaRange, check_replica_range
from cluster.speculative_config import SpeculativeConfig as SpeculativeConfig  # noqa: PLC0414 - for models
from cluster.tenant_config import PLAIN_SCOPES, KeyScope, TenantsConfig

DEMO_CHAT_MODEL = "shoal/demo-chat"
DEMO_EMBED_MODEL = "shoal/demo-embed"
DEFAULT_PORT = 8000
DEFAULT_TENANT = "default"
TENANT_PATTERN = r"^[a-z0-9]{1,32}$"  # no hyphen: `{tenant}-{bucket}` is then unambiguous
# More sequences and guessed tokens in one step keep any machine busy.
MAX_GUESSING_ROWS = 256
_BUCKET_TEMPLATE = re.compile(
    r"[^{}]*(?:\{bucket\}|\{tenant\}[^{}]*[-.][^{}]*\{bucket\}|\{bucket\}[^{}]*[-.][^{}]*\{tenant\})"
    r"[^{}]*"
)
# Names of fields, misspelt ones too, whose values are in no message.
_SECRET_FIELD = re.compile(r"secret|passw|_key|url|proxy|header", re.IGNORECASE)


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is meant for a person."""


class Section(BaseModel):
    """A part of the file: frozen, and refusing what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EngineConfig(Section):
    """Limits of one replica's engine."""

    max_model_len: Annotated[int, Field(ge=16)] | None = None  # None: the checkpoint's own limit
    block_size: Annotated[int, Field(ge=1, le=256)] = 16  # tokens in a KV block
    # Of each tensor-parallel rank; None: from free memory.
    kv_cache_memory_bytes: Annotated[int, Field(gt=0)] | None = None
    # fp8 (e4m3): half the memory of bfloat16; on a CPU it is computed by torch's own operations.
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    # Tokens in one step, decoding and prompts together; None: 2048 on a GPU, 512 on a CPU.
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    max_num_queued_requests: Annotated[int, Field(ge=1)] = 2048  # waiting; more are refused
    max_num_queued_tokens: Annotated[int, Field(ge=1)] = 2**22  # of their prompts
    # How much longer batch requests may make the steps of online ones, as a share of their time;
    # null: no limit. Beside no online request they take whole steps.
    max_batch_slowdown: Annotated[float, Field(ge=0)] | None = 0.05
    # How much longer prompts that need several steps may make the steps of streams, as a share of
    # their time; null: each step takes as many of their tokens as it has room for.
    max_prompt_slowdown: Annotated[float, Field(gt=0)] | None = 0.7
    enable_prefix_caching: bool = True
    # A sequence's logits have the same bits whatever else is in the batch; on a CPU.
    deterministic: bool = False
    num_threads: Annotated[int, Field(ge=1)] | None = None  # CPU, all ranks; None: all cores
    enable_cuda_graphs: bool = True  # on a GPU, of steps that only decode; off: for debugging
    # The next step begins before this one's tokens are read; None: on a GPU. One rank only.
    overlap_steps: bool | None = None
    # Tokens are guessed from what the sequence has said before, or its grammar forces; null: none
    # are. The output is the same.
    speculative_config: SpeculativeConfig | None = None
    # LoRA adapters that are loaded at once, and the highest rank of one: slots of this size are
    # kept beside the model. 0: none; a model with adapters: 8.
    max_loaded_adapters: Annotated[int, Field(ge=0, le=256)] = 0
    max_lora_rank: Annotated[int, Field(ge=1, le=512)] = 16
    # No model is computed: each step takes this long and every sequence's next token is its last
    # plus one; adapters are loaded and change nothing. For measuring the serving layer alone.
    synthetic_step_ms: Annotated[float, Field(ge=0)] | None = None

    @property
    def max_step_rows(self) -> int:
        """Sequences of a step, where each token that one of them guesses counts as another: as many
        guesses as fit, and those of one sequence in any case."""
        if self.speculative_config is None:
            return self.max_num_seqs
        num_guesses = self.speculative_config.num_speculative_tokens
        every_guess = self.max_num_seqs * (1 + num_guesses)
        return max(self.max_num_seqs + num_guesses, min(every_guess, MAX_GUESSING_ROWS))

    @model_validator(mode="after")
    def _something_is_computed_where_it_is_guessed(self) -> Self:
        if self.synthetic_step_ms is not None and self.speculative_config is not None:
            raise ValueError(
                "synthetic_step_ms computes no model, so speculative_config has nothing to save"
            )
        return self

    @model_validator(mode="after")
    def _a_step_holds_every_sequence(self) -> Self:
        budget = self.max_num_batched_tokens
        if budget is not None and budget < self.max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens ({budget}) must be at least max_num_seqs "
                f"({self.max_num_seqs}): each running sequence needs one token per step"
            )
        return self


class ChatDefaults(Section):
    """What a request gets where it says nothing."""

    temperature: Annotated[float, Field(ge=0, le=2)] = 0.1
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    max_tokens: Annotated[int, Field(ge=1)] | None = None  # None: the rest of the context


class ModelConfig(ReplicaRange, Section):
    """One model and its pool of replicas."""

    name: Annotated[str, Field(min_length=1)]  # what clients send as `model`
    # Other names that clients may send. Answers, and the list of models, have its own one.
    aliases: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    source: Annotated[str, Field(min_length=1)]  # a folder, or "demo" for the model shipped inside
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    # Of the matrices; "auto": as the checkpoint is stored, the others are made of float weights.
    quantization: Literal[
        "auto", "none", "int8", "int8_dynamic", "int4", "int4_g32", "int4_g128", "fp8"
    ] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_cpus: Annotated[float, Field(ge=0)] = 1.0  # reserved on Ray per replica, all ranks together
    num_gpus: Annotated[float, Field(ge=0)] = 0.0  # the same
    tensor_parallel_size: Annotated[int, Field(ge=1)] = 1  # ranks that share one replica's model
    # Of a replica's ranks: on one node, on few, or on different ones as far as there are.
    rank_placement: Literal["strict_pack", "pack", "spread"] = "strict_pack"
    chat_template: str | None = None  # a file; None: the checkpoint's own
    # A Jinja file that writes the found chunks into the system message; None: the family's own.
    retrieval_template: str | None = None
    # How the model writes function calls, and thoughts; "auto": as its chat template shows.
    tool_parser: Literal["auto", "none", "llama3_json", "hermes", "mistral"] = "auto"
    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    # LoRA adapters: by name, and each subfolder of a folder as `NAME:SUBFOLDER`, whenever it comes.
    adapters: tuple[AdapterConfig, ...] = ()
    adapter_folder: str | None = None
    defaults: ChatDefaults = ChatDefaults()
    engine: EngineConfig = EngineConfig()

    @model_validator(mode="before")
    @classmethod
    def _adapters_have_slots(cls, raw: object) -> object:
        """Where the engine's limit is not given."""
        if not isinstance(raw, dict) or not (raw.get("adapters") or raw.get("adapter_folder")):
            return raw
        engine = raw.get("engine", {})
        if isinstance(engine, EngineConfig):
            engine = engine.model_dump(exclude_unset=True)
        if not isinstance(engine, dict) or "max_loaded_adapters" in engine:
            return raw
        return {**raw, "engine": {**engine, "max_loaded_adapters": DEFAULT_LOADED_ADAPTERS}}

    @model_validator(mode="after")
    def _adapters_can_be_loaded(self) -> Self:
        if not (self.adapters or self.adapter_folder):
            return self
        if not self.engine.max_loaded_adapters:
            raise ValueError("engine.max_loaded_adapters is 0, but there are adapters")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All that clients may call it, its own name first."""
        return (self.name, *self.aliases)

    @model_validator(mode="after")
    def _each_rank_has_its_part(self) -> Self:
        size = self.tensor_parallel_size
        if size == 1:
            if self.rank_placement != "strict_pack":
                raise ValueError(
                    f"rank_placement ({self.rank_placement}) is about several ranks; "
                    "tensor_parallel_size is 1"
                )
            return self
        if self.num_gpus % size:
            raise ValueError(
                f"num_gpus ({self.num_gpus:g}) must be 0 or a multiple of tensor_parallel_size "
                f"({size}): each rank has as many"
            )
        if self.num_cpus + self.num_gpus == 0:
            raise ValueError(
                f"num_cpus and num_gpus are 0; the {size} ranks need something to be placed by"
            )
        return self


class EmbedderConfig(Section):
    """One embedding model and its pool of replicas."""

    name: Annotated[str, Field(min_length=1)]  # what clients send as `model`
    source: Annotated[str, Field(min_length=1)]  # a folder, a hub id, or "demo"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1  # above min_replicas: by queued tokens
    num_cpus: Annotated[float, Field(ge=0)] = 0.5  # reserved on Ray per replica
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    num_threads: Annotated[int, Field(ge=1)] | None = None  # CPU threads; None: all cores
    max_input_tokens: Annotated[int, Field(ge=1)] | None = None  # None: the checkpoint's own limit
    # What is put before a text; None: as the checkpoint's own configuration says.
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_batch_tokens: Annotated[int, Field(ge=16)] = 8192  # padding included
    max_queued_tokens: Annotated[int, Field(ge=16)] = 1_000_000  # more are refused

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        check_replica_range(self.min_replicas, self.max_replicas)
        return self


class RedisConfig(Section):
    """Where chunks, tasks and keys are kept: Redis 7 and newer, or Valkey 8 and newer."""

    # redis://, rediss:// or unix://, with user and password; SHOAL_REDIS_URL overrides it. None: a
    # server of our own on this machine, under SHOAL_HOME.
    url: Annotated[str | None, Field(repr=False)] = None
    is_cluster: bool = False  # the URL names any node of a Redis Cluster
    key_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,32}$")] = "shoal"
    timeout_s: Annotated[float, Field(gt=0)] = 1.5  # of one command; then 503 with Retry-After


class StorageConfig(Section):
    """Where objects (the files of buckets) are kept: a folder, or an S3-compatible endpoint."""

    folder: str | None = None  # None: <SHOAL_HOME>/storage, unless an endpoint is given
    s3_endpoint: str | None = None  # like https://s3.example.com; buckets are those of the endpoint
    s3_region: str = "us-east-1"
    # None: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
    s3_access_key_id: Annotated[str | None, Field(repr=False)] = None
    s3_secret_access_key: Annotated[str | None, Field(repr=False)] = None
    s3_virtual_hosted_style: bool = False
    max_upload_bytes: Annotated[int, Field(gt=0)] = 5 * 2**30  # of one object, into a folder
    # How a bucket of a tenant is called at the endpoint; must have {tenant} once there are several.
    s3_bucket_name: str = "{bucket}"

    @field_validator("s3_bucket_name")
    @classmethod
    def _is_of_one_tenant(cls, name: str) -> str:
        if not _BUCKET_TEMPLATE.fullmatch(name):
            raise ValueError(
                f"{name!r} must have {{bucket}} and may have {{tenant}}, with a '-' or '.' between "
                "them: two tenants would else share a bucket"
            )
        return name

    @model_validator(mode="after")
    def _is_one_place(self) -> Self:
        if self.folder is not None and self.s3_endpoint is not None:
            raise ValueError("give either `folder` or `s3_endpoint`, not both")
        if (self.s3_access_key_id is None) != (self.s3_secret_access_key is None):
            raise ValueError("s3_access_key_id and s3_secret_access_key are given together")
        return self


class RetrievalConfig(Section):
    """Searching buckets, and how they are read and embedded."""

    min_replicas: Annotated[int, Field(ge=1)] = 1
    max_replicas: Annotated[int, Field(ge=1)] = 1  # above min_replicas: by searches under way
    num_cpus: Annotated[float, Field(ge=0)] = 0.5
    # Least recently used buckets go. A chunk takes 4 bytes per number of its vector, and 0.6 per
    # byte of its text: 1M chunks of 1 KB and 384 numbers 2.1 GB.
    index_memory_bytes: Annotated[int, Field(gt=0)] = 2 * 2**30
    # A bucket with more chunks than this is searched by an approximate index (HNSW), which is built
    # in the background on all cores, after others' work; until then it is searched exactly.
    max_exact_chunks: Annotated[int, Field(ge=0)] = 300_000
    default_num_results: Annotated[int, Field(ge=1, le=100)] = 3
    search_timeout_s: Annotated[float, Field(gt=0)] = 10.0
    reranker: str | None = None  # a cross-encoder: a folder or a hub id; None: no re-ranking
    # Buckets at an S3 endpoint are compared with what is embedded this often.
    sync_interval_s: Annotated[float, Field(gt=0)] = 60.0
    num_task_workers: Annotated[int, Field(ge=1)] = 1
    # Above num_task_workers: by tasks that run and wait; None: always num_task_workers.
    max_task_workers: Annotated[int, Field(ge=1)] | None = None
    max_object_bytes: Annotated[int, Field(gt=0)] = 100 * 2**20  # larger ones are refused by name
    # Networks that websites may be crawled in although they are private, like 10.1.0.0/16.
    crawled_networks: tuple[IPvAnyNetwork, ...] = ()
    parse_timeout_s: Annotated[float, Field(gt=0)] = 120.0
    parse_memory_bytes: Annotated[int, Field(gt=0)] = 2 * 2**30  # of one parsing process

    @property
    def most_task_workers(self) -> int:
        return self.num_task_workers if self.max_task_workers is None else self.max_task_workers

    @model_validator(mode="after")
    def _ranges_are_in_order(self) -> Self:
        check_replica_range(self.min_replicas, self.max_replicas)
        names = ("num_task_workers", "max_task_workers")
        check_replica_range(self.num_task_workers, self.most_task_workers, names=names)
        return self


class ApiKeyConfig(Section):
    """A key as it is stored: its name, its tenant and the SHA-256 of its text, never the text."""

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    tenant: Annotated[str, Field(pattern=TENANT_PATTERN)] = DEFAULT_TENANT
    # None: all for a key of the default tenant, which is the operator's own; all but `admin` else.
    scopes: Annotated[tuple[KeyScope, ...], Field(min_length=1)] | None = None

    @property
    def opens(self) -> frozenset[KeyScope]:
        """The scopes that the key has."""
        if self.scopes is not None:
            return frozenset(self.scopes)
        return frozenset(KeyScope if self.tenant == DEFAULT_TENANT else PLAIN_SCOPES)


class AuthConfig(Section):
    required: bool = True  # off only by writing `required: false`
    api_keys: tuple[ApiKeyConfig, ...] = ()


class HTTPConfig(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    num_ingress_replicas: Annotated[int, Field(ge=1)] = 1
    # Above num_ingress_replicas: by their CPU time and open requests; None: never more. All are on
    # the head.
    max_ingress_replicas: Annotated[int, Field(ge=1)] | None = None
    # Tokens that may wait for a client that reads slowly; beyond it the stream ends with an error.
    max_buffered_tokens: Annotated[int, Field(ge=16)] = 8192
    # `X-Forwarded-*` and friends are not read. Text of prompts is never logged.

    @property
    def most_ingress_replicas(self) -> int:
        most = self.max_ingress_replicas
        return self.num_ingress_replicas if most is None else most

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        names = ("num_ingress_replicas", "max_ingress_replicas")
        check_replica_range(self.num_ingress_replicas, self.most_ingress_replicas, names=names)
        return self


class LogSettings(NamedTuple):
    """How a process of the cluster logs."""

    level: str
    format: Literal["json", "text"]


class ShoalConfig(Section):
    """The whole file."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    default_model: str | None = None  # None: the first
    # The first is the default one for buckets; an empty list switches retrieval off.
    embedders: tuple[EmbedderConfig, ...] = (EmbedderConfig(name=DEMO_EMBED_MODEL, source="demo"),)
    redis: RedisConfig = RedisConfig()
    storage: StorageConfig = StorageConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    # External services, by the prefix of their models' names; an empty list switches them off.
    providers: tuple[ProviderConfig, ...] = DEFAULT_PROVIDERS
    batches: BatchConfig = BatchConfig()
    auth: AuthConfig = AuthConfig()
    tenants: TenantsConfig = TenantsConfig()
    http: HTTPConfig = HTTPConfig()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["json", "text"] = "json"  # `shoal logs` shows both as text

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Self:
        names = [name for model in self.models for name in model.names]
        everything = [*names, *(embedder.name for embedder in self.embedders)]
        everything += [adapter.name for model in self.models for adapter in model.adapters]
        doubled = sorted({name for name in everything if everything.count(name) > 1})
        if doubled:
            raise ValueError(f"models, adapters, embedders: the name {doubled[0]!r} is used twice")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(
                f"default_model: {self.default_model!r} is not one of the models {names}"
            )
        check_providers(self.providers)
        tenants = sorted({key.tenant for key in self.auth.api_keys})
        bucket_name = self.storage.s3_bucket_name
        if len(tenants) > 1 and self.storage.s3_endpoint and "{tenant}" not in bucket_name:
            raise ValueError(
                f"storage.s3_bucket_name: {bucket_name!r} has no {{tenant}}, but there are keys of "
                f"{len(tenants)} tenants: they would share their buckets"
            )
        return self

    @property
    def log_settings(self) -> LogSettings:
        return LogSettings(level=self.log_level, format=self.log_format)

    @property
    def default_model_name(self) -> str:
        """Its own name, where `default_model` is an alias."""
        wanted = self.default_model or self.models[0].name
        return next(model.name for model in self.models if wanted in model.names)


def load_config(path: Path) -> ShoalConfig:
    """Read and check a configuration file. SHOAL_PORT overrides `http.port`, SHOAL_REDIS_URL
    `redis.url`.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not fit the schema.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: the top level must be a mapping, not {type(raw).__name__}")
    return parse_config(raw, origin=str(path))


def parse_config(raw: dict[str, object], *, origin: str = "configuration") -> ShoalConfig:
    """Check a configuration that is already in memory; see `load_config`."""
    try:
        config = ShoalConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_readable(error, origin)) from error
    port = env_port()
    if port is not None:
        config = config.model_copy(update={"http": config.http.model_copy(update={"port": port})})
    redis_url = os.environ.get("SHOAL_REDIS_URL")
    if redis_url:
        redis = config.redis.model_copy(update={"url": redis_url})
        config = config.model_copy(update={"redis": redis})
    return config


def env_port() -> int | None:
    """SHOAL_PORT, checked."""
    raw = os.environ.get("SHOAL_PORT")
    if raw is None:
        return None
    if not raw.isdigit() or not 1 <= int(raw) <= 65535:
        raise ConfigError(f"SHOAL_PORT is {raw!r}; it must be a port number, 1 to 65535")
    return int(raw)


def shoal_home() -> Path:
    """Where keys, logs and data live: SHOAL_HOME, or ~/.shoal; an absolute path."""
    return Path(os.environ.get("SHOAL_HOME") or Path.home() / ".shoal").expanduser().absolute()


def _is_secret(loc: tuple[int | str, ...]) -> bool:
    return any(_SECRET_FIELD.search(str(part)) for part in loc)


def _readable(error: ValidationError, origin: str) -> str:
    items = error.errors()
    places = [item["loc"] for item in items]
    lines = []
    for item in items:
        loc = item["loc"]
        if any(place != loc and place[: len(loc)] == loc for place in places if loc):
            continue  # a list is also called too short when its items are wrong: name the items
        where = ".".join(str(part) for part in item["loc"]) or "top level"
        is_hidden = item["type"] in ("missing", "value_error") or _is_secret(loc)
        given = "" if is_hidden else f" (given: {item['input']!r})"
        lines.append(f"{origin}: {where}: {item['msg']}{given}")
    return "\n".join(lines)
