"""Where training rows come from: drawn in this process, or by worker processes beside a GPU."""

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from transformers import PreTrainedTokenizerFast

from models.demo.batches import Example, Rows, batches, training_examples

POOL = 16  # batches drawn together, so that each has rows of one length


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A part of the curriculum, until `until` of the training is done."""

    until: float
    longest: int
    copy_share: float
    max_length: float


class RowStream(IterableDataset[Rows]):
    """Endless batches whose kind follows `progress`, the share of the training that is done.

    Every worker draws dialogues of its own. With one process the same seed gives the same batches.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        curriculum: tuple[Stage, ...],
        *,
        seed: int,
        batch_tokens: int,
    ) -> None:
        self.tokenizer = tokenizer
        self.curriculum = curriculum
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.num_pools = 0
        self.progress = multiprocessing.get_context("fork").Value("d", 0.0)

    def __iter__(self) -> Iterator[Rows]:
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        left: list[Example] = []
        index = self.num_pools * count + number
        while True:
            stage = next(one for one in self.curriculum if self.progress.value < one.until)
            seed = self.seed * 1_000_003 + index
            examples = training_examples(
                self.tokenizer,
                seed,
                copy_share=stage.copy_share,
                max_length=stage.max_length,
                num_tokens=POOL * self.batch_tokens // count,
                longest=stage.longest,
            )
            pool, left = batches(
                left + examples, num_tokens=self.batch_tokens, pad=self.tokenizer.pad_token_id
            )
            random.Random(seed).shuffle(pool)
            yield from pool
            index += count

    def batches(self, num_workers: int) -> Iterator[Rows]:
        """The batches, drawn ahead by so many processes; by none: as they are asked for."""
        if not num_workers:
            return iter(self)
        loader: DataLoader[Rows] = DataLoader(
            self,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4,
            pin_memory=True,
            multiprocessing_context="fork",
        )
        return iter(loader)
