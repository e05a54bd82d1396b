"""What ``forward`` takes beside ids: as transformers' own model takes it, or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.tolerances import BUNDLE_LOGITS, FLOAT32_LOGITS
from transformers.modeling_utils import slice_logits_to_keep

from shoal.export.optimum import ShoalForCausalLM
from shoal.graphs.errors import InputError

pytestmark = pytest.mark.dependencies

KEPT = [
    0,
    2,
    99,
    torch.tensor([3, 1, 1]),
    torch.tensor([-1]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor([[0, 4], [5, 2], [1, 3]]),
    torch.arange(6) % 2 == 0,
    torch.arange(18).reshape(3, 6) % 5 == 2,
]
IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16], [17, 18, 19, 20, 21, 22]])


@pytest.mark.parametrize("options", [{}, {"num_items_in_batch": 7}, {"ignore_index": 4}])
def test_the_loss_is_that_of_transformers(
    options: dict[str, Any], model: ShoalForCausalLM, oracle: Any, right_padded: Any
) -> None:
    ignored = options.get("ignore_index", -100)
    is_padding = right_padded["attention_mask"] == 0
    labels = right_padded["input_ids"].masked_fill(is_padding, ignored)
    labels[1, 3] = ignored
    with torch.no_grad():
        expected = oracle(**right_padded, labels=labels, **options)
    found = model(**right_padded, labels=labels, **options)
    assert abs(found.loss - expected.loss) <= BUNDLE_LOGITS
    loss, logits, _ = model(**right_padded, labels=labels, return_dict=False, **options)
    assert torch.equal(loss, found.loss)
    assert torch.equal(logits, found.logits)


def test_the_loss_is_that_of_all_columns_whatever_is_kept(model: ShoalForCausalLM) -> None:
    whole = model(IDS, labels=IDS)
    found = model(IDS, labels=IDS, logits_to_keep=1)
    assert torch.equal(found.loss, whole.loss)
    assert torch.equal(found.logits, whole.logits[:, -1:])


@pytest.mark.parametrize("labels", [IDS + 1_000_000, IDS - 50, IDS.float()])
def test_labels_that_are_no_tokens_are_refused(labels: torch.Tensor, model: Any) -> None:
    with pytest.raises(InputError, match=r"labels: expected int64 tokens below \d+, or -100"):
        model(IDS, labels=labels)


def test_labels_without_logits_are_refused(model: ShoalForCausalLM, batch: Any) -> None:
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    with pytest.raises(InputError, match="labels: expected -100 in columns that come after paddin"):
        model(**batch, labels=labels)
    with pytest.raises(InputError, match=r"labels: expected shape \[3, 6\], found \[3, 5\]"):
        model(IDS, labels=IDS[:, 1:])


@pytest.mark.parametrize("keep", KEPT, ids=str)
def test_the_logits_kept_are_those_that_transformers_keeps(
    keep: int | torch.Tensor, model: ShoalForCausalLM
) -> None:
    logits = model(IDS).logits
    columns = keep % 6 if isinstance(keep, torch.Tensor) and keep.dtype != torch.bool else keep
    expected = slice_logits_to_keep(logits, columns)
    found = model(IDS, logits_to_keep=keep).logits
    assert found.shape == expected.shape
    assert not expected.numel() or (found - expected).abs().max() <= FLOAT32_LOGITS


@pytest.mark.parametrize(
    "keep", [-1, 1.5, True, torch.tensor([6]), torch.tensor(1), torch.ones(2, 6) > 0], ids=str
)
def test_columns_that_are_not_there_cannot_be_kept(keep: Any, model: ShoalForCausalLM) -> None:
    with pytest.raises(InputError, match="logits_to_keep: expected"):
        model(IDS, logits_to_keep=keep)


def test_positions_of_tokens_and_of_columns_are_taken(
    model: ShoalForCausalLM, oracle: Any, batch: Any
) -> None:
    mask = batch["attention_mask"]
    counted = (mask.cumsum(1) - 1).clamp(min=0)
    columns = torch.arange(mask.shape[1])[None]
    plain = model(**batch).logits
    with torch.no_grad():
        expected = oracle(**batch, position_ids=counted).logits[mask == 1]
    for position_ids in (counted, columns):
        found = model(**batch, position_ids=position_ids).logits
        assert torch.equal(found, plain)
        assert (found[mask == 1] - expected).abs().max() <= BUNDLE_LOGITS
    first = model(IDS[:, :4], position_ids=torch.arange(4)[None])
    cache = list(first.values())[-1]
    found = model(IDS[:, 4:], cache=cache, position_ids=torch.arange(4, 6)[None]).logits
    assert (found - model(IDS).logits[:, 4:]).abs().max() <= FLOAT32_LOGITS
    options: dict[str, Any] = {"max_new_tokens": 4, "do_sample": False}
    with_positions = model.generate(**batch, position_ids=counted, **options)
    assert torch.equal(with_positions, model.generate(**batch, **options))


@pytest.mark.parametrize(
    ("position_ids", "message"),
    [
        (torch.tensor([[7, 8]]), "counted from 0, found others in row 0"),
        (torch.tensor([[0, 2]]), "counted from 0, found others in row 0"),
        (torch.tensor([[0, 1, 2]]), r"expected shape \[1, 2\], found \[1, 3\]"),
        ([[0, 1]], r"expected shape \[1, 2\], found list"),
    ],
)
def test_other_positions_are_refused(
    position_ids: Any, message: str, model: ShoalForCausalLM
) -> None:
    with pytest.raises(InputError, match=message):
        model(torch.tensor([[5, 6]]), position_ids=position_ids)


def test_columns_are_no_positions_where_padding_lies_between(model: ShoalForCausalLM) -> None:
    mask = torch.tensor([[1, 0, 1]])
    with pytest.raises(InputError, match="counted from 0, found others in row 0"):
        model(torch.tensor([[5, 0, 6]]), attention_mask=mask, position_ids=torch.arange(3)[None])


@pytest.mark.parametrize(
    "name", ["output_hidden_states", "output_attentions", "output_router_logits"]
)
def test_outputs_that_a_bundle_does_not_have_are_refused(
    name: str, model: ShoalForCausalLM
) -> None:
    with pytest.raises(InputError, match=f"^{name}: a bundle takes token ids and gives logits"):
        model(IDS, **{name: True})
    with pytest.raises(InputError, match=f"^{name}: a bundle takes token ids and gives logits"):
        model.generate(IDS, max_new_tokens=1, return_dict_in_generate=True, **{name: True})
    model(IDS, **{name: False})


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[5, 6]], r"expected shape \[rows, tokens\], found list"),
        (None, r"expected shape \[rows, tokens\], found NoneType"),
        (torch.tensor([5, 6]), r"expected shape \[rows, tokens\], found \[2\]"),
        (torch.zeros(1, 0, dtype=torch.int64), r"expected shape \[rows, tokens\], found \[1, 0\]"),
        (torch.tensor([[5.0, 6.0]]), "expected integers, found torch.float32"),
    ],
)
def test_what_is_no_batch_of_ids_is_refused(
    ids: Any, message: str, model: ShoalForCausalLM
) -> None:
    with pytest.raises(InputError, match=f"^input_ids: {message}"):
        model(ids)


def test_masks_that_are_no_padding_are_refused(model: ShoalForCausalLM) -> None:
    with pytest.raises(InputError, match=r"^attention_mask: expected shape \[3, 6\], found dict"):
        model(IDS, attention_mask={"full_attention": None})
    with pytest.raises(InputError, match=r"expected shape \[3, 6\], found \[3, 1, 6, 6\]"):
        model(IDS, attention_mask=torch.ones(3, 1, 6, 6))


def test_stop_strings_end_an_answer_as_in_transformers(
    model: ShoalForCausalLM, oracle: Any, batch: Any, tokenizer: Any
) -> None:
    options = {"stop_strings": [",", "the"], "tokenizer": tokenizer, "do_sample": False}
    found = model.generate(**batch, max_new_tokens=24, **options)
    assert torch.equal(found, oracle.generate(**batch, max_new_tokens=24, **options))
    assert found.shape[1] < batch["input_ids"].shape[1] + 24
