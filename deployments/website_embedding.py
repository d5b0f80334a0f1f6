"""Embedding a website: its pages become objects of a bucket, and the bucket is embedded."""

import logging
from collections.abc import Sequence
from contextlib import aclosing

import msgspec

from cluster.bucket_tasks import EmbedWebsite
from cluster.errors import BadRequestError, ServingError
from cluster.object_store import ObjectStore
from cluster.storage.errors import BucketNotFoundError
from cluster.task_queue.running_task import RunningTask
from cluster.task_queue.task import Outcome, Progress, TaskStatus
from cluster.types import BucketRef
from deployments.bucket_embedding import (
    BucketEmbedding,
    EmbeddingResult,
    EmbeddingWish,
    reason_of_failure,
)
from deployments.crawler.crawl import Crawl, CrawledPage, FailedPage
from deployments.crawler.errors import CrawlError

logger = logging.getLogger(__name__)

_MAX_TOLD = 5  # pages that failed, in a task's error


class WebsiteEmbedding:
    """Crawls for tasks. Who is interrupted crawls again; pages that are the same stay embedded."""

    def __init__(
        self,
        objects: ObjectStore,
        embedding: BucketEmbedding,
        *,
        allowed_networks: Sequence[str] = (),
    ) -> None:
        """`allowed_networks`: the operator's, that may be crawled beside the public internet."""
        self._objects = objects
        self._embedding = embedding
        self._allowed_networks = allowed_networks

    async def embed(
        self, bucket: BucketRef, body: EmbedWebsite, wish: EmbeddingWish, task: RunningTask
    ) -> Outcome:
        """`wish`: for a bucket that is not embedded yet.

        Raises:
            BadRequestError: the first page cannot be had; says why.
            as `BucketEmbedding.embed`.
        """
        if not await self._objects.bucket_exists(bucket):
            raise BucketNotFoundError.of(bucket)
        try:
            crawl = Crawl(body.url, allowed_networks=self._allowed_networks)
            failed = await self._store_pages(crawl, bucket, task)
        except CrawlError as error:
            raise BadRequestError(str(error), param="url") from error
        wish = await self._embedding.wish_of(bucket) or wish
        outcome = await self._embedding.embed(bucket, wish, task)
        if crawl.stopped_by:
            await task.report(_progress(outcome, f"the crawl was ended by {crawl.stopped_by}"))
        return _with_failed_pages(outcome, failed)

    async def _store_pages(
        self, crawl: Crawl, bucket: BucketRef, task: RunningTask
    ) -> list[FailedPage]:
        """
        Raises:
            CrawlError: the first page cannot be had.
        """
        failed: list[FailedPage] = []
        num_pages = 0
        async with aclosing(crawl.pages()) as pages:
            async for page in pages:
                problem = page if isinstance(page, FailedPage) else await self._put(bucket, page)
                if problem is not None:
                    failed.append(problem)
                num_pages += 1
                await task.report(Progress(message=f"crawling: {num_pages} pages"))
        return failed

    async def _put(self, bucket: BucketRef, page: CrawledPage) -> FailedPage | None:
        headers = {"content-type": page.content_type}
        try:
            await self._objects.put(bucket, page.key, page.data, headers=headers)
        except ServingError as error:  # an object cannot be called so, in this store
            return FailedPage(url=page.url, reason=reason_of_failure(error))
        return None


def _progress(outcome: Outcome, message: str) -> Progress:
    result = msgspec.json.decode(outcome.result, type=EmbeddingResult)
    return Progress(
        num_total=result.num_files,
        num_done=result.num_files,
        num_failed=result.num_failed,
        message=message,
    )


def _with_failed_pages(outcome: Outcome, failed: Sequence[FailedPage]) -> Outcome:
    if not failed:
        return outcome
    told = [f"{page.url}: {page.reason}" for page in failed[:_MAX_TOLD]]
    errors = [
        *([outcome.error] if outcome.error else []),
        f"{len(failed)} pages could not be stored, among them {'; '.join(told)}",
    ]
    status = outcome.status
    if status is TaskStatus.SUCCEEDED:
        status = TaskStatus.PARTLY_SUCCEEDED
    return Outcome(status=status, result=outcome.result, error="; ".join(errors))
