"""What the ingress knows about one model: its name, its texts' tokens, its limits, its pool."""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from cluster.config import ModelConfig
from cluster.errors import NotFoundError
from cluster.openai_schema.models import ModelObject, parameters_text, tier_of
from cluster.tenants.limits import TenantLimits, allowed_names
from deployments.ingress.model_pool import ModelPool
from models.chat_template import ChatTemplate, ChatTemplateError
from models.context_template import ContextTemplate
from models.tokenizer import Tokenizer
from models.tool_parsing.call_format import CallFormat
from models.tool_parsing.call_formats import find_call_format, has_thinking

OWNER = "shoal"


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

    @property
    def name(self) -> str:
        return self.config.name


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
    """All models by name."""

    def __init__(self, models: Mapping[str, ServedModel], *, default_name: str) -> None:
        self._models = dict(models)
        self._default_name = default_name

    def find(self, name: str | None, limits: TenantLimits | None = None) -> ServedModel:
        """The model that a request names; None is the default one.

        Raises:
            NotFoundError: there is no such model, or not for who has these limits.
        """
        wanted = self._default_name if name is None else name
        model = self._models.get(wanted)
        if model is None or not allowed_names([wanted], limits):
            raise unknown_model(wanted, allowed_names(sorted(self._models), limits))
        return model

    def all(self) -> tuple[ServedModel, ...]:
        return tuple(self._models.values())


def unknown_model(name: str, known: Sequence[str], *, what: str = "model") -> NotFoundError:
    """`known`: the models that there are, for who asks."""
    return NotFoundError(
        f"The {what} {name[:200]!r} does not exist here; there is: {', '.join(known) or 'none'}",
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
