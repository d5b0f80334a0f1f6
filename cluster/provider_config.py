"""The list `providers` of `shoal.yaml`: external services with OpenAI's chat API, by model prefix.

An entry whose name is one of `BUILTIN` needs nothing else; what it does say replaces what is known
of that provider. Requests choose a provider by the name of a model, never by an address.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")

#: Fields of a chat request that are part of OpenAI's API and are handed on as they are.
OPENAI_PARAMETERS = (
    *("temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty"),
    *("logit_bias", "logprobs", "top_logprobs", "parallel_tool_calls", "reasoning_effort"),
    *("response_format", "stream_options", "user", "metadata", "store", "service_tier"),
    *("safety_identifier", "prompt_cache_key", "prompt_cache_retention", "modalities", "audio"),
    *("functions", "function_call", "web_search_options", "prediction", "verbosity"),
    *("moderation", "prompt_cache_options"),
)
#: What servers know that speak OpenAI's API; more is told by `more_parameters`.
PLAIN_PARAMETERS = (
    *("temperature", "top_p", "n", "stop", "seed", "presence_penalty", "frequency_penalty"),
    *("logprobs", "top_logprobs", "parallel_tool_calls", "response_format", "stream_options"),
)
#: What some servers know beside OpenAI's API; `more_parameters` may have these too.
EXTRA_PARAMETERS = (
    *("top_k", "min_p", "repetition_penalty", "stop_token_ids", "min_tokens", "ignore_eos"),
    *("use_beam_search", "best_of", "length_penalty", "early_stopping", "enable_thinking"),
    *("guided_json", "guided_regex", "guided_choice", "guided_grammar"),
)

BUILTIN: Mapping[str, Mapping[str, Any]] = {
    "openai": {
        "base_url": "https://api.openai.com/v1",
        "parameters": OPENAI_PARAMETERS,
        "token_limit_field": "max_completion_tokens",
    },
    "xai": {
        "base_url": "https://api.x.ai/v1",
        "parameters": (*PLAIN_PARAMETERS, "reasoning_effort", "user"),
        "token_limit_field": "max_completion_tokens",
    },
    "groq": {
        "base_url": "https://api.groq.com/openai/v1",
        "parameters": (
            *("temperature", "top_p", "n", "stop", "seed", "presence_penalty"),
            *("frequency_penalty", "parallel_tool_calls", "response_format", "stream_options"),
            *("reasoning_effort", "service_tier", "user"),
        ),
        "token_limit_field": "max_completion_tokens",
    },
    # Its OpenAI-compatible endpoint ignores what is not in this list; it must not be told more.
    "anthropic": {
        "base_url": "https://api.anthropic.com/v1",
        "parameters": ("temperature", "top_p", "stop", "parallel_tool_calls", "stream_options"),
        "token_limit_field": "max_tokens",
    },
}

_HEADER_NAME = re.compile(r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}$")
_HEADER_VALUE = re.compile(r"^[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?$")
_FIXED_HEADERS = frozenset(
    (
        *("host", "content-length", "content-type", "transfer-encoding", "connection", "accept"),
        *("accept-encoding", "authorization", "user-agent"),
    )
)
_NOT_FOR_KEYS = _FIXED_HEADERS - {"authorization"}


def _known_parameter(name: str) -> str:
    if name not in (*OPENAI_PARAMETERS, *EXTRA_PARAMETERS):
        raise ValueError(f"{name[:64]!r} is not a field of chat requests that is handed on")
    return name


ParameterName = Annotated[str, AfterValidator(_known_parameter)]


class ProviderConfig(BaseModel):
    """One provider."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")]
    base_url: str  # as OpenAI's SDK has it: `/chat/completions` is added
    prefix: Annotated[str, Field(pattern=r"^[^\s/][^\s]{0,62}/$")]  # of models; default: `<name>/`
    keeps_prefix: bool = False  # whether the provider's own names of models have it too
    # bearer, header: the token of a bearer secret; basic: of a basic secret; none: no secret at all
    auth: Literal["bearer", "header", "basic", "none"] = "bearer"
    auth_header: str | None = None  # with `auth: header`: its name, like x-api-key
    headers: Annotated[dict[str, str], Field(repr=False)] = {}  # sent with each request
    parameters: tuple[ParameterName, ...] = PLAIN_PARAMETERS  # what it knows, all of it
    more_parameters: tuple[ParameterName, ...] = ()  # what it knows beside `parameters`
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    models: tuple[str, ...] = ()  # shown in the list of models, with prefix; others work as well
    # Retrieved passages get so many characters of the system message.
    retrieval_chars: Annotated[int, Field(ge=100)] = 24_000
    retrieval_template: str | None = None  # a Jinja file; None: the default one
    max_connections: Annotated[int, Field(ge=1, le=4096)] = 256  # of each ingress process
    connect_timeout_s: Annotated[float, Field(gt=0)] = 5.0
    read_timeout_s: Annotated[float, Field(gt=0)] = 300.0  # of silence
    answer_timeout_s: Annotated[float, Field(gt=0)] = 1800.0  # of an answer from end to end
    max_retries: Annotated[int, Field(ge=0, le=5)] = 2  # where nothing can have happened yet
    # http:// or https://, with user and password; proxies of the environment are not used.
    proxy_url: Annotated[str | None, Field(repr=False)] = None
    ca_file: str | None = None  # certificates to trust instead of the public ones
    allow_plain_http: bool = False  # secrets in clear on the network; loopback may always

    @model_validator(mode="before")
    @classmethod
    def _with_what_is_known(cls, raw: object) -> object:
        if not isinstance(raw, dict):
            return raw
        name = raw.get("name")
        known = BUILTIN.get(name, {}) if isinstance(name, str) else {}
        prefix = {"prefix": f"{name}/"} if isinstance(name, str) else {}
        return {**prefix, **known, **raw}

    @field_validator("base_url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        if not _is_web_address(url):
            raise ValueError("must be like https://api.example.com/v1")
        parts = urlsplit(url)
        if parts.username is not None or parts.password is not None or parts.query or "#" in url:
            raise ValueError("must have no user, password, query or fragment")
        return url.rstrip("/")

    @field_validator("proxy_url")
    @classmethod
    def _is_a_proxy(cls, url: str | None) -> str | None:
        if url is not None and not _is_web_address(url):
            raise ValueError("must be like http://user:password@proxy.example.com:3128")
        return url

    @field_validator("headers", mode="before")
    @classmethod
    def _are_headers(cls, headers: object) -> object:
        """No message shows a value: it may be a secret."""
        if not isinstance(headers, dict):
            raise ValueError("must be a mapping of names to values")
        for name, value in headers.items():
            is_text = isinstance(name, str) and isinstance(value, str)
            if (
                not is_text
                or not _HEADER_NAME.fullmatch(name)
                or not _HEADER_VALUE.fullmatch(value)
            ):
                raise ValueError(f"{str(name)[:64]!r} or its value cannot be a header")
            if name.lower() in _FIXED_HEADERS:
                raise ValueError(f"{name!r} is not for a configuration to set")
        return headers

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        parts = urlsplit(self.base_url)
        may_be_plain = (
            self.allow_plain_http or self.auth == "none" or parts.hostname in LOOPBACK_HOSTS
        )
        if parts.scheme == "http" and not may_be_plain:
            raise ValueError(
                f"base_url: {self.base_url!r} would send secrets in clear; use https, or say"
                " allow_plain_http: true"
            )
        if (self.auth == "header") != (self.auth_header is not None):
            raise ValueError("auth_header is given with `auth: header`, and only then")
        name = self.auth_header
        if name is not None and (not _HEADER_NAME.fullmatch(name) or name.lower() in _NOT_FOR_KEYS):
            raise ValueError(f"auth_header: {name[:64]!r} cannot be the header of a key")
        strange = [model for model in self.models if not self.serves(model)]
        if strange:
            raise ValueError(f"models: {strange[0]!r} does not begin with {self.prefix!r}")
        return self

    @property
    def known_parameters(self) -> frozenset[str]:
        return frozenset(self.parameters) | frozenset(self.more_parameters)

    def serves(self, model_name: str) -> bool:
        """Whether a model's name is one of this provider's; letters' case does not matter."""
        prefix = self.prefix
        return len(model_name) > len(prefix) and (
            model_name[: len(prefix)].lower() == prefix.lower()
        )

    def own_name(self, model_name: str) -> str:
        """What the provider calls a model."""
        return model_name if self.keeps_prefix else model_name[len(self.prefix) :]


def _is_web_address(url: str) -> bool:
    if not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts = urlsplit(url)
        return parts.port != 0 and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        return False


#: Where a configuration says nothing. `providers: []` switches all of them off.
DEFAULT_PROVIDERS = tuple(ProviderConfig.model_validate({"name": name}) for name in BUILTIN)


def provider_of(name: str, providers: Sequence[ProviderConfig]) -> ProviderConfig | None:
    """Whose model it would be by its name; of several prefixes the longest counts."""
    found = [provider for provider in providers if provider.serves(name)]
    return max(found, key=lambda provider: len(provider.prefix), default=None)


def check_providers(providers: Sequence[ProviderConfig]) -> None:
    """
    Raises:
        ValueError: two have the same name or prefix.
    """
    for what in ("name", "prefix"):
        values = [str(getattr(provider, what)).lower() for provider in providers]
        doubled = sorted({value for value in values if values.count(value) > 1})
        if doubled:
            raise ValueError(f"providers: the {what} {doubled[0]!r} is used twice")
