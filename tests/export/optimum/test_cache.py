"""The cache of a bundle behaves as those of transformers do."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tolerances import BUNDLE_LOGITS, FLOAT32_LOGITS
from transformers import Cache, DynamicCache, StaticCache

from shoal.export.optimum import ShoalForCausalLM
from shoal.export.optimum.cache_name import CACHE
from shoal.graphs.errors import InputError

pytestmark = pytest.mark.dependencies

IDS = torch.tensor([[5, 6, 7, 8, 9, 10], [11, 12, 13, 14, 15, 16]])


def last_logits(model: ShoalForCausalLM, ids: torch.Tensor, cache: Cache) -> torch.Tensor:
    logits: torch.Tensor = model(ids, cache=cache).logits[:, -1]
    return logits


def assert_last(model: ShoalForCausalLM, ids: torch.Tensor, found: torch.Tensor) -> None:
    """``found`` are the logits after ``ids``, read at once."""
    assert (found - model(ids).logits[:, -1]).abs().max() <= FLOAT32_LOGITS


@pytest.mark.parametrize("with_config", [False, True])
def test_a_common_beginning_is_read_once_and_copied(
    with_config: bool, model: ShoalForCausalLM, oracle: Any, tokenizer: Any
) -> None:
    """As transformers' guide to caches does it."""
    beginning = tokenizer("And it came to pass, that", return_tensors="pt")
    prompts = ["And it came to pass, that the king", "And it came to pass, that when"]
    texts = {}
    for name, answerer in {"shoal": model, "transformers": oracle}.items():
        cache = DynamicCache(config=answerer.config) if with_config else DynamicCache()
        with torch.no_grad():
            read = answerer(**beginning, **{CACHE: cache})[CACHE]
        assert read is cache
        assert cache.get_seq_length() == beginning["input_ids"].shape[1]
        texts[name] = [
            answerer.generate(
                **tokenizer(prompt, return_tensors="pt"),
                **{CACHE: copy.deepcopy(cache)},
                max_new_tokens=8,
                do_sample=False,
            ).tolist()
            for prompt in prompts
        ]
        assert cache.get_seq_length() == beginning["input_ids"].shape[1]
    assert texts["shoal"] == texts["transformers"]


def test_copies_go_on_apart(model: ShoalForCausalLM) -> None:
    cache = model(IDS[:, :3])[CACHE]
    copied = copy.deepcopy(cache)
    other = IDS.flip(1)
    found = last_logits(model, other[:, :2], copied)
    assert_last(model, torch.cat([IDS[:, :3], other[:, :2]], 1), found)
    assert_last(model, IDS, last_logits(model, IDS[:, 3:], cache))


def test_a_cache_given_empty_is_filled(model: ShoalForCausalLM) -> None:
    cache = DynamicCache()
    for column in range(6):
        found = last_logits(model, IDS[:, column : column + 1], cache)
    assert cache.get_seq_length() == 6
    assert_last(model, IDS, found)


def test_columns_are_cropped_with_the_padding_among_them(
    model: ShoalForCausalLM, oracle: Any, batch: Any
) -> None:
    read = {}
    for name, reader in {"shoal": model, "transformers": oracle}.items():
        with torch.no_grad():
            cache = reader(**batch)[CACHE]
            cache.crop(-2)
            assert cache.get_seq_length() == batch["input_ids"].shape[1] - 2
            cache.crop(0)
            again = {key: value[:, -2:] for key, value in batch.items()}
            again["attention_mask"] = batch["attention_mask"]
            read[name] = reader(**again, **{CACHE: cache}).logits[:, -1]
    assert (read["shoal"] - read["transformers"]).abs().max() <= BUNDLE_LOGITS
    cache = model(**batch)[CACHE]
    cache.crop(-99)
    assert cache.get_seq_length() == 0
    assert torch.equal(model(**batch, cache=cache).logits, model(**batch).logits)
    with pytest.raises(ValueError, match="crop: expected a negative number, of columns to remove"):
        cache.crop(3)


def test_rows_are_chosen_and_repeated(model: ShoalForCausalLM) -> None:
    cache = model(IDS[:, :5])[CACHE]
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([3, 0, 0]))
    rows = [1, 0, 0]
    assert_last(model, IDS[rows], last_logits(model, IDS[rows, 5:], cache))


def test_a_reset_cache_is_a_new_one(model: ShoalForCausalLM) -> None:
    cache = model(IDS)[CACHE]
    cache.reset()
    assert cache.get_seq_length() == 0
    assert_last(model, IDS[:1], last_logits(model, IDS[:1], cache))


def test_a_failed_step_leaves_the_cache_as_it_was(fp32_bundle: Path) -> None:
    model = ShoalForCausalLM.from_pretrained(fp32_bundle, threads=1, max_context=6)
    mask = torch.tensor([[0, 0, 1], [1, 1, 1]])
    cache = model(IDS[:, :3], attention_mask=mask)[CACHE]
    with pytest.raises(InputError, match="7 tokens are more than the model's 6"):
        model(IDS[:, :4], cache=cache)
    assert [context.position for context in cache.layers[0].contexts] == [1, 3]
    going_on = torch.cat([mask, torch.ones(2, 3, dtype=torch.int64)], 1)
    found = model(IDS[:, 3:], attention_mask=going_on, cache=cache).logits
    assert (found - model(IDS, attention_mask=going_on).logits[:, 3:]).abs().max() <= FLOAT32_LOGITS


def test_other_padding_than_was_read_is_refused(model: ShoalForCausalLM) -> None:
    cache = model(IDS[:, :3], attention_mask=torch.tensor([[0, 0, 1], [1, 1, 1]]))[CACHE]
    with pytest.raises(InputError, match="attention_mask: expected the columns in the cache as th"):
        model(IDS[:, 3:], attention_mask=torch.ones(2, 6), cache=cache)


def test_other_caches_are_refused(
    model: ShoalForCausalLM, oracle: Any, fp32_bundle: Path, int8_bundle: Path
) -> None:
    with torch.no_grad():
        theirs = oracle(IDS)[CACHE]
    others = [theirs, StaticCache(oracle.config, max_cache_len=16), ((IDS, IDS),)]
    others.append(ShoalForCausalLM.from_pretrained(int8_bundle, threads=1)(IDS)[CACHE])
    for cache in others:
        with pytest.raises(InputError, match="cache: expected what this model returned, or an em"):
            model(IDS[:, :1], cache=cache)
    with pytest.raises(InputError, match="give one of cache and past_key_values"):
        model(IDS, cache=DynamicCache(), past_key_values=DynamicCache())
    with pytest.raises(InputError, match="give one of cache and past_key_values"):
        model.generate(IDS, cache=DynamicCache(), past_key_values=DynamicCache())
    with torch.no_grad(), pytest.raises(InputError, match="cache: it is a bundle's"):
        oracle(IDS[:, :1], **{CACHE: model(IDS)[CACHE]})
