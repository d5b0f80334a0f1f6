"""The masks of a step: for each sequence with a grammar, the tokens that it allows next."""

from collections.abc import Sequence as AbstractSequence

import numpy as np
from numpy.typing import NDArray

from models.grammar.compiler import GrammarMatcher, MaskFiller, mask_words


class GrammarMasks:
    """Fills the masks of a batch; a row whose grammar gives up allows nothing."""

    def __init__(self, vocab_size: int) -> None:
        self._num_words = mask_words(vocab_size)
        self._filler = MaskFiller()

    def of(self, matchers: AbstractSequence[GrammarMatcher]) -> NDArray[np.int32]:
        """One row of ceil(vocabulary / 32) words per matcher, lowest bit first."""
        masks = np.zeros((len(matchers), self._num_words), dtype=np.int32)
        for row in self._filler.fill(matchers, masks):
            masks[row] = 0
        return masks
