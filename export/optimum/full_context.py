"""The end of ``generate`` where contexts are full: what was generated is kept."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria


class FullContext(StoppingCriteria):  # type: ignore[misc]
    """Ends all rows when the longest one has no room to read another token.

    Args:
        max_context: tokens a context holds.
        ids_BT: the prompts; None if there is nothing but a BOS token.
        mask_BS: attention_mask, 0 at padding, also over the columns in a cache; None if unknown.
    """

    def __init__(self, max_context: int, ids_BT: Tensor | None, mask_BS: Tensor | None) -> None:
        prompt_columns = 1 if ids_BT is None else ids_BT.shape[1]
        longest = prompt_columns
        if isinstance(mask_BS, Tensor) and mask_BS.dim() == 2:
            longest = int(mask_BS.sum(1).max())
        self._max_context = max_context
        # The last token decided is read only when another one is wanted.
        self._most_columns = prompt_columns + max_context - longest
        self._was_said = False

    def __call__(self, input_ids: Tensor, scores: Any, **options: Any) -> Tensor:
        """Whether each row is done, bool [B]."""
        is_full = input_ids.shape[1] > self._most_columns
        if is_full and not self._was_said:
            self._was_said = True
            warnings.warn(
                f"context: {self._max_context} tokens (max_position_embeddings or max_context) are "
                "full, so the answer ends before max_length; shorten the prompt or ask for fewer "
                "tokens",
                stacklevel=2,
            )
        return torch.full((input_ids.shape[0],), is_full, dtype=torch.bool)
