"""What the ingress reaches beside the models' pools: all that retrieval consists of."""

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.batch_tasks import BatchTasks
from cluster.bucket_tasks import BucketTasks
from cluster.chunk_store import ChunkStore
from cluster.file_store import FileStore
from cluster.object_store import ObjectStore
from cluster.retrieval import Embedder, Retriever


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrievalServices:
    """Where retrieval is switched on, all of it is there."""

    embedders: Mapping[str, Embedder]  # by model name, the default one first
    retriever: Retriever
    chunks: ChunkStore
    tasks: BucketTasks
    objects: ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchServices:
    """Files, and the batches that are made of them."""

    files: FileStore
    tasks: BatchTasks
