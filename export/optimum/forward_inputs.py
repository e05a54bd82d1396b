"""What transformers hands to a model beside token ids, checked: masks, positions, labels, options.

B rows   T new columns   S columns read before and new ones
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from shoal.graphs.errors import InputError

_NOT_IN_A_BUNDLE = (
    "inputs_embeds",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
)
"""What models of transformers take and a bundle cannot; anything else they are handed is none of a
model's business, and differs from version to version."""


def check_options(options: dict[str, Any]) -> None:
    """Refuse what would change an answer but cannot here.

    Raises:
        InputError: an option is set that a bundle does not have.
    """
    for name in _NOT_IN_A_BUNDLE:
        if options.get(name) is not None and options[name] is not False:
            raise InputError(f"{name}: a bundle takes token ids and gives logits; leave it out")


def check_ids(input_ids: object, num_rows: int | None) -> None:
    """Refuse what is no batch of token ids.

    Args:
        input_ids: anything.
        num_rows: of the cache; None if it is empty.

    Raises:
        InputError: no tensor of integers [B,T] with as many rows and a column.
    """
    shape = _shape_of(input_ids)
    is_batch = len(shape) == 2 and 0 not in shape and shape[0] == (num_rows or shape[0])
    if not is_batch or not isinstance(input_ids, Tensor):
        rows = "rows" if num_rows is None else num_rows
        raise InputError(f"input_ids: expected shape [{rows}, tokens], found {shape}")
    if input_ids.is_floating_point() or input_ids.is_complex() or input_ids.dtype == torch.bool:
        raise InputError(f"input_ids: expected integers, found {input_ids.dtype}")


def real_columns(mask_BS: Tensor | None, before_BS: Tensor, shape_BT: torch.Size) -> Tensor:
    """Which columns are no padding, bool [B,S].

    Args:
        mask_BS: attention_mask; None for no padding in the new columns.
        before_BS: the same of the columns read before.
        shape_BT: of the token ids.

    Raises:
        InputError: a mask of another shape, or one that says otherwise of the columns read before.
    """
    if mask_BS is None:
        return torch.cat([before_BS, torch.ones(shape_BT, dtype=torch.bool)], dim=1)
    expected = [shape_BT[0], before_BS.shape[1] + shape_BT[1]]
    found = _shape_of(mask_BS)
    if found != expected:
        raise InputError(
            f"attention_mask: expected shape {expected}, found {found}; give it for the columns in "
            "the cache too"
        )
    real_BS = mask_BS.bool()
    if not torch.equal(real_BS[:, : before_BS.shape[1]], before_BS):
        raise InputError(
            "attention_mask: expected the columns in the cache as they were read, found other "
            "padding there; start with an empty cache"
        )
    return real_BS


def check_positions(position_ids: Tensor | None, real_BS: Tensor, num_new: int) -> None:
    """Refuse positions other than those that follow from the columns.

    A row's tokens are counted from its first; columns may be counted instead, as transformers does
    without a mask, if the padding is at the ends: attention sees differences of positions only.

    Args:
        position_ids: int64 [B,T] or [1,T] of the new columns; None if there are none.
        real_BS: which columns are no padding.
        num_new: new columns.

    Raises:
        InputError: other positions, or not one for each new column.
    """
    if position_ids is None:
        return
    num_rows, num_columns = real_BS.shape
    found = _shape_of(position_ids)
    if found not in ([1, num_new], [num_rows, num_new]):
        raise InputError(f"position_ids: expected shape [{num_rows}, {num_new}], found {found}")
    counted_BS = real_BS.cumsum(1) - 1
    columns_BS = torch.arange(num_columns).expand(num_rows, -1)
    first_B1 = real_BS.int().argmax(1, keepdim=True)
    has_gap_B = ((columns_BS - counted_BS != first_B1) & real_BS).any(1)
    padding_BT = ~real_BS[:, -num_new:]
    are_counted_B = ((position_ids == counted_BS[:, -num_new:]) | padding_BT).all(1)
    are_columns_B = ((position_ids == columns_BS[:, -num_new:]) | padding_BT).all(1) & ~has_gap_B
    wrong = (~(are_counted_B | are_columns_B)).nonzero().flatten().tolist()
    if wrong:
        raise InputError(
            f"position_ids: expected the tokens of each row counted from 0, found others in row "
            f"{wrong[0]}; leave it out"
        )


def check_labels(
    labels_BT: Tensor, real_BT: Tensor, vocab_size: int, options: dict[str, Any]
) -> None:
    """Refuse labels for which there are no logits.

    Args:
        labels_BT: as transformers takes them, not shifted yet.
        real_BT: false where there is padding.
        vocab_size: what their tokens are below.
        options: ``ignore_index`` and ``shift_labels`` of transformers' loss, if given.

    Raises:
        InputError: another shape than the ids', no token, or one whose column comes after padding.
    """
    if _shape_of(labels_BT) != list(real_BT.shape):
        raise InputError(
            f"labels: expected shape {list(real_BT.shape)}, found {_shape_of(labels_BT)}"
        )
    ignored = options.get("ignore_index", -100)
    is_token_BT = (labels_BT >= 0) & (labels_BT < vocab_size)
    if labels_BT.dtype != torch.int64 or not (is_token_BT | (labels_BT == ignored)).all():
        raise InputError(
            f"labels: expected int64 tokens below {vocab_size}, or {ignored} to leave a column "
            "out, found others"
        )
    shifted_BT = options.get("shift_labels")
    if shifted_BT is None:
        shifted_BT = pad(labels_BT, (0, 1), value=ignored)[:, 1:]
    if ((shifted_BT != ignored) & ~real_BT).any():
        raise InputError(
            f"labels: expected {ignored} in columns that come after padding, which has no logits, "
            "found a token; pad on the right, or set it there"
        )


def _shape_of(value: object) -> list[int] | str:
    """A tensor's shape, or what else it is."""
    return list(value.shape) if isinstance(value, Tensor) else type(value).__name__
