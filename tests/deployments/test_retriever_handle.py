"""The retriever over a handle: what is sent, and what comes back."""

import pickle
from collections.abc import Generator
from typing import Any

import pytest
from ray.exceptions import RayTaskError

from cluster.errors import NotFoundError
from cluster.retrieval import Retriever, SearchMode
from cluster.types import BucketRef, Chunk, FoundChunk
from deployments.retriever_handle import ServeRetriever

FOUND = FoundChunk(
    bucket="handbook",
    filename="a.txt",
    etag="e",
    embedding_model="m",
    chunk=Chunk(text="text", start=0, end=4, heading="A > B", page=2),
    position=3,
    distance=0.25,
    score=1.5,
)


class FakeHandle:
    """Carries arguments and replies as Serve does: pickled."""

    def __init__(self, reply: list[FoundChunk] | Exception) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self._reply = reply
        self.search = self

    def remote(self, *arguments: Any) -> "FakeHandle":
        self.calls.append(pickle.loads(pickle.dumps(arguments)))  # noqa: S301  # our own bytes
        return self

    def __await__(self) -> Generator[Any, None, Any]:
        yield from ()
        if isinstance(self._reply, Exception):
            wrapped = RayTaskError("search", "Traceback", self._reply, proctitle="", ip="127.0.0.1")
            raise wrapped.as_instanceof_cause()
        return pickle.loads(pickle.dumps(self._reply))  # noqa: S301  # our own bytes


async def test_a_search_arrives_whole_and_so_does_its_answer() -> None:
    handle = FakeHandle([FOUND])
    retriever: Retriever = ServeRetriever(handle, timeout_s=5)
    refs = (BucketRef("one", "handbook"), BucketRef("one", "notes"))
    assert await retriever.search(refs, ("q1", "q2"), max_results=4) == [FOUND]
    assert handle.calls == [([*refs], ["q1", "q2"], 4, SearchMode.FUSED)]


async def test_an_error_of_the_replica_is_raised_as_what_it_is() -> None:
    handle = FakeHandle(NotFoundError("The bucket 'x' does not exist.", param="bucket_name"))
    with pytest.raises(NotFoundError, match="'x'") as caught:
        await ServeRetriever(handle, timeout_s=5).search(
            [BucketRef("one", "x")], ["q"], max_results=1
        )
    assert type(caught.value) is NotFoundError
    assert caught.value.param == "bucket_name"
