"""An entry of a model's list `adapters` in `shoal.yaml`."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DEFAULT_LOADED_ADAPTERS = 8  # of a model that has adapters


class AdapterConfig(BaseModel):
    """A LoRA adapter in PEFT's format."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(min_length=1)]  # what clients send as `model`
    source: Annotated[str, Field(min_length=1)]  # a folder, or a hub id
