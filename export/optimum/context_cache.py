"""Contexts in the place of transformers' key-value cache: one for each row of a batch.

B rows   T new columns   W vocab_size
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import Cache

from shoal.graphs.errors import InputError
from shoal.runtime.engine.context import Context
from shoal.runtime.model import Model


class ContextCache(Cache):  # type: ignore[misc]
    """What was read of each row of a batch; grows in place as the caches of transformers do.

    To transformers it is a cache without layers, and the base answers what else a version asks.

    Padding is not read: a row's context holds its real tokens only. So a row gives the same
    whatever it is padded with, and its positions count from its first real token.

    Args:
        model: the model.
        num_rows: how many rows the batch has.
    """

    is_linear = (False,)  # it has a length, so a prompt that goes on from it is cut there
    is_croppable = False

    def __init__(self, model: Model, num_rows: int) -> None:
        super().__init__(layers=[])
        self.contexts: list[Context] = [model.new_context() for _ in range(num_rows)]
        self._vocab_size = model.manifest.model.vocab_size
        self._num_columns = 0

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of the batch that were read or passed over as padding."""
        return self._num_columns

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on in each row from the context of the row that ``beam_idx`` int64 [B] names."""
        taken: set[int] = set()
        contexts = []
        for row in beam_idx.tolist():
            # Forks share what they have in common.
            contexts.append(self.contexts[row].fork() if row in taken else self.contexts[row])
            taken.add(row)
        self.contexts = contexts

    def read(self, ids_BT: Tensor, real_BT: Tensor, num_logits: int) -> Tensor:
        """Read columns of a batch.

        Args:
            ids_BT: token ids.
            real_BT: false where there is padding.
            num_logits: columns at the end whose logits are wanted.

        Returns:
            Logits of these columns, float32 [B,num_logits,W]; zeros at padding.

        Raises:
            InputError: a row has padding where logits are wanted and no token, or more tokens than
                the model can read.
        """
        num_rows, num_columns = ids_BT.shape
        logits = torch.zeros(num_rows, num_logits, self._vocab_size)
        first = num_columns - num_logits
        is_new = self._num_columns == 0
        twins: dict[tuple[int, ...], int] = {}
        for row in range(num_rows):
            ids_T, real_T = ids_BT[row], real_BT[row]
            early, late = ids_T[:first][real_T[:first]], ids_T[first:][real_T[first:]]
            if len(late) == 0:
                raise InputError(
                    f"attention_mask: expected tokens at the end of every row, found padding in "
                    f"row {row}; pad on the left (tokenizer.padding_side = 'left')"
                )
            twin = twins.setdefault((*ids_T.tolist(), *real_T.tolist()), row) if is_new else row
            if twin == row:
                logits[row, real_T[first:]] = self._read_row(row, early.tolist(), late.tolist())
            else:  # beams of one prompt
                self.contexts[row] = self.contexts[twin].fork()
                logits[row] = logits[twin]
        self._num_columns += num_columns
        return logits

    def _read_row(self, row: int, early: list[int], late: list[int]) -> Tensor:
        """Read tokens of one row; logits [T,W] of ``late``."""
        if early:
            self.contexts[row].step(early, logits="none")
        return torch.from_numpy(self.contexts[row].step(late, logits="all").logits)
