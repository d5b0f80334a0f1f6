"""`/v2/ai/embeddings/buckets` and `/similarity-search` (api.md 5.3, 5.4, 1.1)."""

from typing import Annotated

from pydantic import BaseModel, Field

from cluster.chunk_records import FileRecord
from cluster.errors import FieldProblem, NotFoundError
from cluster.openai_schema.error_bodies import OpenAIError
from cluster.openai_schema.validation import Fields
from cluster.openai_schema.values import integer
from cluster.telnyx_schema.tasks import BucketName, iso_time
from cluster.types import FoundChunk

DEFAULT_NUM_DOCS = 3
MAX_NUM_DOCS = 100


class SimilaritySearchRequest(Fields):
    """The number of results has two names: Telnyx's schema has the first, its texts the second."""

    bucket_name: BucketName
    query: Annotated[str, Field(min_length=1, max_length=100_000)]
    num_of_docs: Annotated[int, integer(low=1, high=MAX_NUM_DOCS)] | None = None
    num_docs: Annotated[int, integer(low=1, high=MAX_NUM_DOCS)] | None = None

    @property
    def max_results(self) -> int:
        return self.num_of_docs or self.num_docs or DEFAULT_NUM_DOCS

    def problems(self) -> list[FieldProblem]:
        if None in (self.num_of_docs, self.num_docs) or self.num_of_docs == self.num_docs:
            return []
        message = f"says {self.num_docs} and num_of_docs {self.num_of_docs}: give one of them"
        return [FieldProblem(loc=("num_docs",), message=message)]


class FoundMetadata(BaseModel):
    source: str  # the object's URL
    checksum: str  # its ETag
    embedding: str  # the model
    filename: str
    certainty: float  # 1 - distance / 2
    loader_metadata: dict[str, str] | None = None


class FoundDocument(BaseModel):
    document_chunk: str
    distance: float  # cosine: 0 to 2
    metadata: FoundMetadata

    @classmethod
    def of(cls, found: FoundChunk, source: str) -> "FoundDocument":
        return cls(
            document_chunk=found.chunk.text,
            distance=found.distance,
            metadata=FoundMetadata(
                source=source,
                checksum=found.etag,
                embedding=found.embedding_model,
                filename=found.filename,
                certainty=1.0 - found.distance / 2.0,
                loader_metadata=found.chunk.loader_metadata,
            ),
        )


class SimilaritySearchAnswer(BaseModel):
    data: list[FoundDocument]


class BucketNames(BaseModel):
    buckets: list[str]


class BucketNamesAnswer(BaseModel):
    data: BucketNames


class FileObject(BaseModel):
    """A file of an embedded bucket."""

    filename: str
    status: str
    created_at: str
    updated_at: str
    last_embedded_at: str | None
    error_reason: str | None

    @classmethod
    def of(cls, record: FileRecord) -> "FileObject":
        embedded_at = record.last_embedded_at
        return cls(
            filename=record.filename,
            status=record.status.value,
            created_at=iso_time(record.created_at),
            updated_at=iso_time(record.updated_at),
            last_embedded_at=None if embedded_at is None else iso_time(embedded_at),
            error_reason=record.error_reason or None,
        )


class BucketFilesAnswer(BaseModel):
    data: list[FileObject]


class DetailError(BaseModel):
    code: str
    title: str
    detail: str


class BucketNotFoundBody(BaseModel):
    """The 404 of a deletion: a `detail` list, as FastAPI's, of items as Telnyx's errors."""

    detail: list[DetailError]
    error: OpenAIError


class EmbeddingsNotFoundError(NotFoundError):
    """A bucket whose embedding is to be deleted has none."""

    def body(self) -> dict[str, object]:
        item = {"code": self.code, "title": self.title, "detail": self.detail}
        return {"detail": [item], "error": self.openai_error()}
