"""``logits_to_keep`` of transformers: the columns of a batch whose logits are wanted.

B rows   T columns   n of them   W vocab_size
"""

from __future__ import annotations

import torch
from torch import Tensor

from shoal.graphs.errors import InputError


def first_kept(keep: int | Tensor, shape_BT: torch.Size) -> int:
    """The first column whose logits are wanted.

    Args:
        keep: how many columns at the end, 0 for all; or columns, int64 [n] or of each row int64
            [B,n]; or which of them, bool [B,T].
        shape_BT: of the token ids.

    Raises:
        InputError: it is nothing of that kind, or there are no such columns.
    """
    num_columns = shape_BT[1]
    if isinstance(keep, Tensor):
        columns = _columns(keep, shape_BT)
        return int(columns.min()) if columns.numel() else num_columns - 1
    if isinstance(keep, bool) or not isinstance(keep, int) or keep < 0:
        raise InputError(f"logits_to_keep: expected a number of columns, found {keep!r:.60}")
    return max(0, num_columns - keep) if keep else 0


def select_logits(keep: int | Tensor, logits_BTW: Tensor, first: int) -> Tensor:
    """Those wanted of the logits of the columns from ``first`` on.

    Returns:
        Logits [B,n,W]; [n,W] for booleans [B,T], row by row.
    """
    if isinstance(keep, int):
        return logits_BTW[:, -keep:]  # also all of them: -0 is 0
    if _is_mask(keep):
        return logits_BTW[keep[:, first:]]
    columns = torch.arange(first + logits_BTW.shape[1])[keep] - first
    if columns.dim() == 1:
        return logits_BTW[:, columns]
    return torch.take_along_dim(logits_BTW, columns[..., None], dim=1)


def _columns(keep: Tensor, shape_BT: torch.Size) -> Tensor:
    """The columns that ``keep`` names, each as often as it does."""
    num_rows, num_columns = shape_BT
    try:
        if _is_mask(keep) and keep.shape == shape_BT:
            return keep.nonzero()[:, 1]
        if keep.dim() == 1 or (keep.dim() == 2 and len(keep) == num_rows):
            return torch.arange(num_columns)[keep]
    except IndexError:
        pass
    raise InputError(
        f"logits_to_keep: expected columns in 0..{num_columns - 1}, as one list or one for each of "
        f"{num_rows} rows, or booleans of shape {list(shape_BT)}, found {keep.dtype} of shape "
        f"{list(keep.shape)}"
    )


def _is_mask(keep: Tensor) -> bool:
    return keep.dim() == 2 and keep.dtype == torch.bool
