"""The record of administrative acts: who did what to which thing, and how it ended. No secrets.

Lines of the logger `audit`. The request, its key and its tenant are those of `log_context`.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum

from cluster.log_lines import fields_of

AUDIT_LOGGER = "audit"
logger = logging.getLogger(AUDIT_LOGGER)


class Act(StrEnum):
    """What is recorded."""

    TENANT_CREATED = "tenant.created"
    TENANT_CHANGED = "tenant.changed"
    TENANT_DELETED = "tenant.deleted"
    KEY_CREATED = "key.created"
    KEY_ROTATED = "key.rotated"
    KEY_REVOKED = "key.revoked"
    SECRET_CREATED = "integration_secret.created"
    SECRET_DELETED = "integration_secret.deleted"
    BUCKET_DELETED = "bucket.deleted"
    OBJECT_DELETED = "object.deleted"
    EMBEDDINGS_DELETED = "embeddings.deleted"
    FILE_DELETED = "file.deleted"
    BATCH_CANCELLED = "batch.cancelled"
    DEPLOYED = "cluster.deployed"


@dataclass(slots=True)
class Audited:
    """An act under way; what it is done to may become known as it goes along."""

    target: str  # names and ids, no secret
    result: str = "ok"


@contextmanager
def audited(act: Act, target: str, *, actor: str | None = None) -> Iterator[Audited]:
    """Record the act that is done within it, also when it is refused or fails.

    `actor`: who does it, where it is not the key of a request.
    """
    under_way = Audited(target)
    try:
        yield under_way
    except BaseException as error:
        status = getattr(error, "status", 500)  # of errors that are answers
        under_way.result = "refused" if status < 500 else "failed"
        raise
    finally:
        fields = fields_of(
            act=act.value, target=under_way.target, result=under_way.result, actor=actor
        )
        logger.info("%s: %s: %s", act.value, under_way.target, under_way.result, extra=fields)
