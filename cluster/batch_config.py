"""The section `batches` of `shoal.yaml`: what files and batches may take."""

from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

MAX_WINDOW_S = 7 * 24 * 3600.0


class BatchConfig(BaseModel):
    """OpenAI's limits are the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_file_bytes: Annotated[int, Field(gt=0)] = 200 * 2**20
    max_requests: Annotated[int, Field(ge=1)] = 50_000  # lines of one batch
    # Lines that one task worker has at the engines at once, of all its batches together: enough to
    # fill an engine of the default size.
    max_lines_at_once: Annotated[int, Field(ge=1)] = 256
    completion_window_s: Annotated[float, Field(gt=0, le=MAX_WINDOW_S)] = (
        24 * 3600.0
    )  # what "24h" means
    # Of files for batches and of their results, where the client does not say; and of batches.
    retention_s: Annotated[float, Field(gt=0)] = 30 * 24 * 3600.0
    # Where the storage is an S3 endpoint: the bucket there that has a tenant's files.
    s3_bucket_name: Annotated[str, Field(pattern=r"\{tenant\}")] = "{tenant}-shoal-files"

    @model_validator(mode="after")
    def _a_batch_is_remembered_while_it_runs(self) -> Self:
        if self.retention_s < self.completion_window_s:
            raise ValueError(
                f"retention_s ({self.retention_s:g}) must be at least completion_window_s "
                f"({self.completion_window_s:g})"
            )
        return self
