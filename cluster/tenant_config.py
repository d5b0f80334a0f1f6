"""The section `tenants` of `shoal.yaml`, and what API keys may be for."""

from enum import StrEnum
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field


class KeyScope(StrEnum):
    """What a key opens."""

    INFERENCE = "inference"  # models, files, batches, integration secrets
    BUCKETS = "buckets"  # objects, embeddings of buckets, searches in them
    ADMIN = "admin"  # tenants, keys and everybody's usage


#: Of keys that nothing else is said of, but for the operator's own.
PLAIN_SCOPES = (KeyScope.INFERENCE, KeyScope.BUCKETS)

Count = Annotated[int, Field(ge=0)]
#: A model's name, or the beginning of several with a * behind it.
ModelPattern = Annotated[str, Field(min_length=1, max_length=200)]


class LimitsConfig(BaseModel):
    """What a tenant may use; None: as much as it likes. A tenant's own limits go before these."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    requests_per_minute: Count | None = None  # to models
    tokens_per_minute: Count | None = None  # of prompts and answers together
    concurrent_requests: Count | None = None  # to models, streams above all, at the same time
    stored_bytes: Count | None = None  # of buckets and files together
    models: tuple[ModelPattern, ...] | None = None  # names, or beginnings like `openai/*`


class TenantsConfig(BaseModel):
    """Tenants and keys that are kept in Redis, and what tenants may use."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    default_limits: LimitsConfig = LimitsConfig()
    # How long keys that were seen before open, and limits are not held, while Redis is away; then
    # 503. Keys of this file always open.
    redis_grace_s: Annotated[float, Field(ge=0)] = 300.0
    usage_retention_days: Annotated[int, Field(ge=1, le=3650)] = 400
