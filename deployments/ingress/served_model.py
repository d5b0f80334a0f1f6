"""What the ingress knows about one model: its name, its texts' tokens, its limits, its pool."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import yaml

from cluster.adapter_catalog import AdapterCatalog
from cluster.config import ModelConfig
from cluster.errors import NotFoundError
from cluster.openai_schema.models import ModelObject, parameters_text, tier_of
from cluster.provider_config import ProviderConfig, provider_of
from cluster.tenants.limits import TenantLimits, allowed_names
from deployments.ingress.model_pool import ModelPool
from models.chat_template import ChatTemplate, ChatTemplateError
from models.context_template import ContextTemplate
from models.tokenizer import Tokenizer
from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.call_formats import find_call_format, has_thinking

OWNER = "shoal"
_NUM_NAMES_SHOWN = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    config: ModelConfig
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None  # None: plain completions only
    context_template: ContextTemplate  # how retrieved chunks are written
    max_model_len: int  # tokens of prompt and output together
    vocab_size: int  # ids that the model can produce
    pool: ModelPool
    card: ModelObject
    call_format: CallFormat | None = None  # None: the model calls no functions
    has_thinking: bool = False  # outputs may start with thoughts
    adapter: str = ""  # the LoRA adapter that it is served with

    @property
    def name(self) -> str:
        """What clients call it."""
        return self.adapter or self.config.name

    def with_adapter(self, name: str, *, hub_id: str | None) -> Self:
        """This model with an adapter: all the rest of it stays as it is."""
        update = {"id": name, "root": hub_id or name, "parent": self.name, "base_model": self.name}
        return replace(self, adapter=name, card=self.card.model_copy(update=update))


def load_served_model(
    config: ModelConfig,
    folder: Path,
    pool: ModelPool,
    *,
    max_model_len: int,
    vocab_size: int | None = None,
) -> ServedModel:
    """Read what the ingress needs from a checkpoint's folder; weights are not loaded.

    `max_model_len` and `vocab_size` are what the engine worked out (`ReplicaFacts`).

    Raises:
        TokenizerError, ChatTemplateError: a file is missing or broken.
    """
    tokenizer = Tokenizer.from_folder(folder)
    override = Path(config.chat_template) if config.chat_template is not None else None
    context_override = Path(config.retrieval_template) if config.retrieval_template else None
    try:
        chat_template = ChatTemplate.from_folder(folder, tokenizer, override=override)
    except ChatTemplateError:
        if override is not None or _has_template(folder):
            raise
        chat_template = None
    call_format, thinks = None, False
    if chat_template is not None:
        call_format = find_call_format(chat_template, tokenizer, configured=config.tool_parser)
        thinks = has_thinking(chat_template, configured=config.reasoning_parser)
    return ServedModel(
        config=config,
        tokenizer=tokenizer,
        chat_template=chat_template,
        context_template=ContextTemplate.from_folder(folder, override=context_override),
        max_model_len=max_model_len,
        vocab_size=vocab_size or tokenizer.vocab_size,
        pool=pool,
        card=_card(config.name, folder, max_model_len),
        call_format=call_format,
        has_thinking=thinks,
    )


class ModelDirectory:
    """All models by name, their adapters among them. Adapters in a folder come and go."""

    def __init__(
        self,
        models: Mapping[str, ServedModel],
        *,
        default_name: str,
        providers: Sequence[ProviderConfig] = (),
    ) -> None:
        """`providers`: whose models are none of ours, to say so."""
        self._models = dict(models)
        self._providers = providers
        self._by_any_name = {
            name: model for model in models.values() for name in model.config.names
        }
        self._default_name = default_name
        self._catalogs = [
            (model, AdapterCatalog(model.config))
            for model in models.values()
            if model.config.adapters or model.config.adapter_folder
        ]

    def find(self, name: str | None, limits: TenantLimits | None = None) -> ServedModel:
        """The model that a request names, by its own name or an alias; None is the default one.

        Raises:
            NotFoundError: there is no such model, or not for who has these limits.
        """
        wanted = self._default_name if name is None else name
        model = self._by_any_name.get(wanted) or self._with_adapter(wanted)
        if model is None or not allowed_names([model.name], limits):
            if model is None and allowed_names([wanted], limits):
                self._refuse_external(wanted)
            names = [*sorted(self._models), *(adapter.name for adapter in self.adapters())]
            raise unknown_model(wanted, allowed_names(names, limits))
        return model

    def _refuse_external(self, name: str) -> None:
        provider = provider_of(name, self._providers)
        if provider is not None:
            raise NotFoundError(
                f"The model {name[:200]!r} is one of the external provider {provider.name}; those"
                " are there for POST /v1/chat/completions only.",
                param="model",
                openai_code="model_not_found",
            )

    def has(self, name: str) -> bool:
        """Whether `find` finds it."""
        return name in self._by_any_name or self._with_adapter(name) is not None

    def all(self) -> tuple[ServedModel, ...]:
        """The models without adapters: what has replicas."""
        return tuple(self._models.values())

    def adapters(self) -> tuple[ServedModel, ...]:
        """The models with each of their adapters, as there are now."""
        return tuple(
            model.with_adapter(name, hub_id=catalog.hub_id(name))
            for model, catalog in self._catalogs
            for name in catalog.names()
        )

    def _with_adapter(self, name: str) -> ServedModel | None:
        for model, catalog in self._catalogs:
            if catalog.has(name):
                return model.with_adapter(name, hub_id=catalog.hub_id(name))
        return None


def unknown_model(name: str, known: Sequence[str], *, what: str = "model") -> NotFoundError:
    """`known`: the models that there are, for who asks."""
    shown = ", ".join(known[:_NUM_NAMES_SHOWN]) or "none"
    rest = len(known) - _NUM_NAMES_SHOWN
    shown += f" and {rest} more" if rest > 0 else ""
    return NotFoundError(
        f"The {what} {name[:200]!r} does not exist here; there is: {shown}",
        param="model",
        openai_code="model_not_found",
    )


def _has_template(folder: Path) -> bool:
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    config = folder / "tokenizer_config.json"
    return config.exists() and "chat_template" in json.loads(config.read_text(encoding="utf-8"))


def _card(name: str, folder: Path, max_model_len: int) -> ModelObject:
    about = _model_card_header(folder)
    num_parameters = count_parameters(folder)
    languages = about.get("language")
    if isinstance(languages, str):
        languages = [languages]
    return ModelObject(
        id=name,
        created=int((folder / "tokenizer.json").stat().st_mtime),
        owned_by=OWNER,
        root=name,
        organization=name.split("/", 1)[0] if "/" in name else OWNER,
        context_length=max_model_len,
        max_completion_tokens=max_model_len - 1,
        languages=[str(item) for item in languages] if isinstance(languages, list) else [],
        parameters=num_parameters,
        parameters_str=parameters_text(num_parameters),
        tier=tier_of(num_parameters),
        license=str(about.get("license", "unknown")),
    )


def _model_card_header(folder: Path) -> dict[str, object]:
    """The YAML between the dashes at the top of a model's README.md; {} without one."""
    path = folder / "README.md"
    if not path.exists():
        return {}
    parts = path.read_text(encoding="utf-8", errors="replace").split("---", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        header = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}  # a decoration of the models page, not worth refusing a model for
    return header if isinstance(header, dict) else {}


def count_parameters(folder: Path) -> int:
    """The number of weights in a folder's safetensors files, from their headers alone."""
    return sum(_count_in_file(path) for path in sorted(folder.glob("*.safetensors")))


def _count_in_file(path: Path) -> int:
    with path.open("rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
    tensors = (entry for name, entry in header.items() if name != "__metadata__")
    return sum(math.prod(tensor["shape"]) for tensor in tensors)
