"""`shoal.yaml`: read once, checked at once, unknown keys refused.

`load_config(path)` gives a frozen `ShoalConfig`; a mistake raises `ConfigError` with one readable
line per problem. The environment overrides: SHOAL_HOME, SHOAL_PORT, SHOAL_API_KEY (see `env_*`).
"""

import os
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

DEMO_CHAT_MODEL = "shoal/demo-chat"
DEFAULT_PORT = 8000


class ConfigError(ValueError):
    """A configuration that cannot be used; the message is meant for a person."""


class Section(BaseModel):
    """A part of the file: frozen, and refusing what it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class EngineConfig(Section):
    """Limits of one replica's engine."""

    max_model_len: Annotated[int, Field(ge=16)] | None = None  # None: the checkpoint's own limit
    block_size: Annotated[int, Field(ge=1, le=256)] = 16  # tokens in a KV block
    kv_cache_memory_bytes: Annotated[int, Field(gt=0)] | None = None  # None: from free memory
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    max_num_seqs: Annotated[int, Field(ge=1)] = 256
    # Tokens in one step, decoding and prompts together; None: 2048 on a GPU, 512 on a CPU.
    max_num_batched_tokens: Annotated[int, Field(ge=1)] | None = None
    max_num_queued_requests: Annotated[int, Field(ge=1)] = 2048  # waiting; more are refused
    enable_prefix_caching: bool = True
    num_threads: Annotated[int, Field(ge=1)] | None = None  # CPU threads; None: all cores
    # No model is computed: each step takes this long and every sequence's next token is its last
    # plus one. For measuring the serving layer alone.
    synthetic_step_ms: Annotated[float, Field(ge=0)] | None = None

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


class ModelConfig(Section):
    """One model and its pool of replicas."""

    name: Annotated[str, Field(min_length=1)]  # what clients send as `model`
    source: Annotated[str, Field(min_length=1)]  # a folder, or "demo" for the model shipped inside
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_replicas: Annotated[int, Field(ge=1)] = 1
    num_cpus: Annotated[float, Field(ge=0)] = 1.0  # reserved on Ray per replica
    num_gpus: Annotated[float, Field(ge=0)] = 0.0
    chat_template: str | None = None  # a file; None: the checkpoint's own
    # How the model writes function calls, and thoughts; "auto": as its chat template shows.
    tool_parser: Literal["auto", "none", "llama3_json", "hermes", "mistral"] = "auto"
    reasoning_parser: Literal["auto", "none", "think"] = "auto"
    defaults: ChatDefaults = ChatDefaults()
    engine: EngineConfig = EngineConfig()


class ApiKeyConfig(Section):
    """A key as it is stored: its name and the SHA-256 of its text, never the text."""

    name: Annotated[str, Field(min_length=1)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class AuthConfig(Section):
    required: bool = True  # off only by writing `required: false`
    api_keys: tuple[ApiKeyConfig, ...] = ()


class HTTPConfig(Section):
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=1, le=65535)] = DEFAULT_PORT
    max_body_bytes: Annotated[int, Field(ge=1024)] = 16 * 2**20
    num_ingress_replicas: Annotated[int, Field(ge=1)] = 1
    # Tokens that may wait for a client that reads slowly; beyond it the stream ends with an error.
    max_buffered_tokens: Annotated[int, Field(ge=16)] = 8192
    # `X-Forwarded-*` and friends are not read. Text of prompts is never logged.


class ShoalConfig(Section):
    """The whole file."""

    models: Annotated[tuple[ModelConfig, ...], Field(min_length=1)]
    default_model: str | None = None  # None: the first
    auth: AuthConfig = AuthConfig()
    http: HTTPConfig = HTTPConfig()
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"

    @model_validator(mode="after")
    def _names_are_consistent(self) -> Self:
        names = [model.name for model in self.models]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            raise ValueError(f"models: the name {doubled[0]!r} is used twice")
        if self.default_model is not None and self.default_model not in names:
            raise ValueError(
                f"default_model: {self.default_model!r} is not one of the models {names}"
            )
        return self

    @property
    def default_model_name(self) -> str:
        return self.default_model or self.models[0].name


def load_config(path: Path) -> ShoalConfig:
    """Read and check a configuration file. SHOAL_PORT overrides `http.port`.

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
    if port is None:
        return config
    return config.model_copy(update={"http": config.http.model_copy(update={"port": port})})


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


def _readable(error: ValidationError, origin: str) -> str:
    items = error.errors()
    places = [item["loc"] for item in items]
    lines = []
    for item in items:
        loc = item["loc"]
        if any(place != loc and place[: len(loc)] == loc for place in places if loc):
            continue  # a list is also called too short when its items are wrong: name the items
        where = ".".join(str(part) for part in item["loc"]) or "top level"
        given = "" if item["type"] in ("missing", "value_error") else f" (given: {item['input']!r})"
        lines.append(f"{origin}: {where}: {item['msg']}{given}")
    return "\n".join(lines)
