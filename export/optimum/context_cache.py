"""Contexts in the place of transformers' key-value cache: one for each row of a batch.

B rows   S columns read   T new columns   W vocab_size

To transformers a cache is a list of layers. A bundle's has a single one, which holds the contexts,
so that what works on a cache (crop, reorder, copy, reset) works on them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import CacheLayerMixin

from shoal.graphs.errors import InputError
from shoal.runtime.engine.context import Context
from shoal.runtime.model import Model


class ContextLayer(CacheLayerMixin):  # type: ignore[misc]
    """What was read of each row of a batch; grows in place as the caches of transformers do.

    Padding is not read: a row's context holds its real tokens only. So a row gives the same
    whatever it is padded with, and its positions count from its first real token.

    Args:
        model: the model.
    """

    is_croppable = True

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.contexts: list[Context] = []
        """One for each row."""
        self.real_BS = torch.ones(0, 0, dtype=torch.bool)
        """Which columns were no padding."""

    def __deepcopy__(self, memo: dict[int, Any]) -> ContextLayer:
        other = ContextLayer(self.model)
        other.contexts = [context.fork() for context in self.contexts]
        other.real_BS = self.real_BS
        return other

    @property
    def num_rows(self) -> int | None:
        """Rows of the batch; None while there are no columns, and rows may be as many as wanted."""
        return len(self.contexts) if self.get_seq_length() else None

    def start(self, num_rows: int) -> None:
        """Have so many rows, unless there are columns."""
        if self.num_rows is None:
            self.contexts = [self.model.new_context() for _ in range(num_rows)]
            self.real_BS = torch.ones(num_rows, 0, dtype=torch.bool)

    def get_seq_length(self) -> int:
        """Columns of the batch that were read or passed over as padding."""
        return int(self.real_BS.shape[1])

    def get_max_length(self) -> int:
        """No limit on columns: padding takes no room."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Columns before and after ``query_length`` more, and the first of them."""
        return self.get_seq_length() + query_length, 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Refuse the layers of another model; see ``update``."""
        self.update(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> Any:
        """Refuse the layers of another model.

        Raises:
            InputError: always.
        """
        raise InputError("cache: it is a bundle's and holds no keys; use it with that model only")

    def reset(self) -> None:
        """Forget everything, rows included."""
        self.contexts = []
        self.real_BS = torch.ones(0, 0, dtype=torch.bool)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget columns at the end.

        Args:
            tokens_to_remove: their number as transformers writes it, negative.

        Raises:
            InputError: it is positive.
        """
        if tokens_to_remove > 0:
            raise InputError(
                "crop: expected a negative number, of columns to remove, found "
                f"{tokens_to_remove}; to keep N columns give N - cache.get_seq_length()"
            )
        self.real_BS = self.real_BS[:, : max(0, self.get_seq_length() + tokens_to_remove)]
        self._forget_the_rest()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Go on in each row from the context of the row that ``beam_idx`` int64 [B] names."""
        taken: set[int] = set()
        contexts = []
        for row in beam_idx.tolist():
            # Forks share what they have in common.
            contexts.append(self.contexts[row].fork() if row in taken else self.contexts[row])
            taken.add(row)
        self.contexts = contexts
        self.real_BS = self.real_BS[beam_idx]

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the rows that ``indices`` int64 [rows] names."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Take each row ``repeats`` times."""
        self.reorder_cache(torch.arange(len(self.contexts)).repeat_interleave(repeats))

    def read(self, ids_BT: Tensor, real_BT: Tensor, num_logits: int) -> Tensor:
        """Read columns of a batch that was started; after an error contexts are as they were.

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
        try:
            logits = self._read_rows(ids_BT, real_BT, num_logits)
        except BaseException:
            self._forget_the_rest()
            raise
        self.real_BS = torch.cat([self.real_BS, real_BT], dim=1)
        return logits

    def _read_rows(self, ids_BT: Tensor, real_BT: Tensor, num_logits: int) -> Tensor:
        num_rows, num_columns = ids_BT.shape
        logits = torch.zeros(num_rows, num_logits, self.model.manifest.model.vocab_size)
        first = num_columns - num_logits
        is_new = self.get_seq_length() == 0
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
        return logits

    def _read_row(self, row: int, early: list[int], late: list[int]) -> Tensor:
        """Read tokens of one row; logits [T,W] of ``late``."""
        context = self.contexts[row]
        context.reserve(context.position + len(early) + len(late))  # refuses before it computes
        if early:
            context.step(early, logits="none")
        return torch.from_numpy(context.step(late, logits="all").logits)

    def _forget_the_rest(self) -> None:
        """Let each context hold the real tokens of its row."""
        for context, length in zip(self.contexts, self.real_BS.sum(1).tolist(), strict=True):
            context.rewind(length)


def layer_in(cache: Cache | None, model: Model) -> tuple[Cache, ContextLayer]:
    """A cache for a model, and the layer in it that holds contexts.

    Args:
        cache: what the model returned; or an empty ``DynamicCache``, which gets such a layer in the
            place of its own; or None for a new cache.
        model: the model.

    Raises:
        InputError: it is another cache.
    """
    if cache is None:
        cache = Cache(layers=[ContextLayer(model)])
    elif isinstance(cache, DynamicCache) and cache.get_seq_length() == 0:
        cache.layers = [ContextLayer(model)]
    layer = next(iter(getattr(cache, "layers", ())), None)
    if not isinstance(layer, ContextLayer) or layer.model is not model:
        found = "another model's" if isinstance(layer, ContextLayer) else type(cache).__name__
        raise InputError(
            f"cache: expected what this model returned, or an empty DynamicCache, found {found}; "
            "leave it out"
        )
    return cache, layer
