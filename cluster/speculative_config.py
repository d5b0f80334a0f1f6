"""The section `speculative_config` of an engine in `shoal.yaml`: tokens that are guessed."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class SpeculativeConfig(BaseModel):
    """Prompt lookup: where a sequence's last tokens were there before, what followed them then is
    guessed to follow now. The names are vLLM's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_speculative_tokens: Annotated[int, Field(ge=1, le=64)] = 8  # guessed at once, at most
    # Tokens that have to be the same for a guess; of several such places the one with most of them
    # the same is taken, counted up to prompt_lookup_max.
    prompt_lookup_min: Annotated[int, Field(ge=1, le=64)] = 3
    prompt_lookup_max: Annotated[int, Field(ge=1, le=64)] = 8
    # Guess as much as pays: by how often guesses were right, and what they cost the step. Off: as
    # much as there is room for, for measuring.
    adaptive: bool = True

    @model_validator(mode="after")
    def _range_is_in_order(self) -> Self:
        if self.prompt_lookup_max < self.prompt_lookup_min:
            raise ValueError(
                f"prompt_lookup_max ({self.prompt_lookup_max}) must be at least prompt_lookup_min "
                f"({self.prompt_lookup_min})"
            )
        return self
