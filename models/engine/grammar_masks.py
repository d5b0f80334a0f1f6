"""The masks of a step: for each sequence with a grammar, the tokens that it allows next."""

from collections.abc import Callable
from collections.abc import Sequence as AbstractSequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from models.grammar.compiler import GrammarMatcher, MaskFiller, mask_words


class GrammarMasks:
    """Fills the masks of a batch beside the model's computation: they depend on the tokens before
    it alone, and are wanted after it. A row whose grammar gives up allows nothing.
    """

    def __init__(self, vocab_size: int) -> None:
        self._num_words = mask_words(vocab_size)
        self._filler = MaskFiller()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar-masks")

    def begin(self, matchers: AbstractSequence[GrammarMatcher]) -> Callable[[], NDArray[np.int32]]:
        """What is returned waits for one row of ceil(vocabulary / 32) words per matcher, lowest bit
        first. Until then nobody else may touch the matchers.
        """
        return self._thread.submit(self._fill, matchers).result

    def close(self) -> None:
        self._thread.shutdown(wait=False)

    def _fill(self, matchers: AbstractSequence[GrammarMatcher]) -> NDArray[np.int32]:
        masks = np.zeros((len(matchers), self._num_words), dtype=np.int32)
        for row in self._filler.fill(matchers, masks):
            masks[row] = 0
        return masks
