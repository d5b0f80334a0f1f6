"""What grammar masks allow, read from their words: the few tokens of a row, or all that it forbids.

Most of the time a grammar leaves some tens of tokens; whoever looks at those alone, and not at the
whole vocabulary, needs next to nothing for the row.

Shapes: R = rows, V = vocabulary, W = ceil(V / 32) words of a mask, lowest bit first, N = rows with
few tokens, C = the most tokens that one of them has.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from models.engine.transfers import upload

_MAX_WORDS = 128  # with any bit set: at most 4,096 tokens are few


@dataclass(frozen=True, slots=True, kw_only=True)
class FewTokens:
    """The rows of a batch whose masks leave few tokens, and which."""

    rows: list[int]  # N
    token_ids_NC: NDArray[np.int64]  # rising, and then padding
    is_padding_NC: NDArray[np.bool_]

    def logits(self, logits_RV: torch.Tensor) -> torch.Tensor:
        """Of these tokens alone: [N, C], -inf at the padding."""
        firsts_N1 = np.array(self.rows)[:, None] * logits_RV.shape[1]
        places = upload(firsts_N1 + self.token_ids_NC, logits_RV.device)
        is_padding_NC = upload(self.is_padding_NC, logits_RV.device)
        return logits_RV.take(places).masked_fill_(is_padding_NC, -torch.inf)


def few_tokens(mask_rows: Mapping[int, int], masks_GW: NDArray[np.int32]) -> FewTokens:
    """`mask_rows` names the mask of each row that has one."""
    words_GW = masks_GW[list(mask_rows.values())]
    is_few_G = np.count_nonzero(words_GW, axis=1) <= _MAX_WORDS
    rows = [row for row, is_few in zip(mask_rows, is_few_G, strict=True) if is_few]
    words_NW = words_GW[is_few_G]
    row_of_word, place_of_word = np.nonzero(words_NW)
    which, bits = np.nonzero(_bits(words_NW[row_of_word, place_of_word][:, None]))
    row_of_token = row_of_word[which]
    counts_N = np.bincount(row_of_token, minlength=len(rows))
    num_columns = max(1, int(counts_N.max(initial=0)))
    is_padding_NC = np.arange(num_columns) >= counts_N[:, None]
    token_ids_NC = np.zeros(is_padding_NC.shape, dtype=np.int64)
    # Row by row and from the lowest word and bit on: tokens come in the order of the columns.
    token_ids_NC[~is_padding_NC] = place_of_word[which] * 32 + bits
    return FewTokens(rows=rows, token_ids_NC=token_ids_NC, is_padding_NC=is_padding_NC)


def forbid_unmasked(
    logits_RV: torch.Tensor, mask_rows: Mapping[int, int], masks_GW: NDArray[np.int32]
) -> None:
    """Put -inf, in place, where a row's mask does not allow the token."""
    masks_NW = masks_GW[list(mask_rows.values())]
    is_forbidden_NV = _bits(masks_NW)[:, : logits_RV.shape[1]] == 0
    is_forbidden_NV = upload(is_forbidden_NV, logits_RV.device)
    if len(mask_rows) == len(logits_RV):
        logits_RV.masked_fill_(is_forbidden_NV, -torch.inf)
        return
    indices = upload(np.array(list(mask_rows)), logits_RV.device)
    logits_RV[indices] = logits_RV[indices].masked_fill_(is_forbidden_NV, -torch.inf)


def _bits(words_NW: NDArray[np.int32]) -> NDArray[np.uint8]:
    """[N, 32 W]"""
    words = np.ascontiguousarray(words_NW)
    return np.unpackbits(words.view(np.uint8), axis=1, bitorder="little")
