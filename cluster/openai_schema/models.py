"""`GET /models`: Telnyx's full model object, with OpenAI's integer `created`."""

from typing import Literal

from pydantic import BaseModel

_SMALL_PARAMETERS = 16 * 10**9
_MEDIUM_PARAMETERS = 64 * 10**9


class Pricing(BaseModel):
    """Our own machines: nothing is charged."""

    prompt: str = "0"
    cached_prompt: str = "0"
    completion: str = "0"
    currency: str = "USD"
    unit: Literal["1M_tokens"] = "1M_tokens"


class ModelObject(BaseModel):
    id: str
    object: Literal["model"] = "model"
    created: int  # Unix time
    owned_by: str
    # As at vLLM: what is loaded under this name, and the model that an adapter belongs to.
    root: str | None = None
    parent: str | None = None
    organization: str
    context_length: int
    max_completion_tokens: int | None = None
    languages: list[str]
    parameters: int
    parameters_str: str
    tier: Literal["small", "medium", "large", "unlisted"]
    license: str
    task: str = "text-generation"
    description: str | None = None
    base_model: str | None = None
    is_fine_tunable: bool = False
    is_vision_supported: bool = False
    recommended_for_assistants: bool = False
    regions: list[str] = []
    pricing: Pricing = Pricing()
    service_tiers: list[str] = ["default"]


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[ModelObject]


def tier_of(num_parameters: int) -> Literal["small", "medium", "large"]:
    if num_parameters < _SMALL_PARAMETERS:
        return "small"
    return "medium" if num_parameters < _MEDIUM_PARAMETERS else "large"


def parameters_text(num_parameters: int) -> str:
    """7612756480 becomes "7.6B"."""
    for unit, size in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if num_parameters >= size:
            return f"{num_parameters / size:.1f}{unit}"
    return str(num_parameters)
