"""Where answers of transformers' ``generate`` end: full contexts, and models that know no end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import pipeline

from shoal.export.optimum import ShoalForCausalLM
from shoal.export.optimum.cache_name import CACHE
from shoal.graphs.errors import InputError
from shoal.runtime import open_bundle

pytestmark = pytest.mark.dependencies

FULL = r"context: 20 tokens \(max_position_embeddings or max_context\) are full"


@pytest.fixture(scope="module")
def short(fp32_bundle: Path) -> ShoalForCausalLM:
    return ShoalForCausalLM.from_pretrained(fp32_bundle, threads=1, max_context=20)


def test_a_full_context_keeps_what_was_generated(short: ShoalForCausalLM) -> None:
    ids = short.model.encode("And it came to pass, that")
    expected = short.model.generate(ids, max_new_tokens=99)
    with pytest.warns(UserWarning, match=FULL):
        found = short.generate(torch.tensor([ids]), max_new_tokens=99, do_sample=False)
    assert found[0].tolist() == ids + list(expected)
    assert expected.finish_reason == "context_full"
    same = short.generate(torch.tensor([ids]), max_length=20, do_sample=False)
    assert torch.equal(same, found[:, :20])


@pytest.mark.parametrize(
    "options",
    [{"do_sample": False}, {"num_beams": 3, "do_sample": False}, {"do_sample": True, "top_k": 4}],
)
def test_batches_end_with_their_longest_row(
    options: dict[str, Any], short: ShoalForCausalLM, oracle: Any, batch: Any
) -> None:
    torch.manual_seed(5)
    with pytest.warns(UserWarning, match=FULL):
        found = short.generate(**batch, max_new_tokens=99, **options)
    longest = int(batch["attention_mask"].sum(1).max())
    torch.manual_seed(5)
    expected = oracle.generate(**batch, max_new_tokens=21 - longest, **options)
    assert torch.equal(found, expected)


def test_a_cache_counts_toward_what_is_full(short: ShoalForCausalLM) -> None:
    options: dict[str, Any] = {"do_sample": False, "return_dict_in_generate": True}
    prompt = torch.tensor([short.model.encode("And God said")])
    first = short.generate(prompt, max_new_tokens=8, **options)
    with pytest.warns(UserWarning, match=FULL):
        found = short.generate(first.sequences, cache=first[CACHE], max_new_tokens=99, **options)
    with pytest.warns(UserWarning, match=FULL):
        whole = short.generate(prompt, max_new_tokens=99, **options)
    assert torch.equal(found.sequences, whole.sequences)


def test_a_prompt_that_is_too_long_is_refused(short: ShoalForCausalLM) -> None:
    with pytest.raises(InputError, match="22 tokens are more than the model's 20"):
        short.generate(torch.ones(1, 22, dtype=torch.int64), max_new_tokens=1)


def test_a_model_without_eos_answers_batches(
    endless_bundle: Path, oracle: Any, tokenizer: Any, batch: Any
) -> None:
    model = ShoalForCausalLM.from_pretrained(endless_bundle, threads=1)
    assert model.generation_config.eos_token_id is None
    options: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    expected = oracle.generate(**batch, **options, eos_token_id=None)
    assert torch.equal(model.generate(**batch, **options), expected)
    expected = oracle.generate(**batch, **options, num_beams=2, eos_token_id=None)
    assert torch.equal(model.generate(**batch, **options, num_beams=2), expected)
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    texts = write(["And God said", "The man"], batch_size=2, **options)
    plain = open_bundle(endless_bundle, threads=1)
    said = "".join(plain.generate(plain.encode("The man"), max_new_tokens=8).pieces())
    assert texts[1][0]["generated_text"] == "The man" + said


def test_a_bundle_is_opened_as_asked(fp32_bundle: Path) -> None:
    model = ShoalForCausalLM.from_pretrained(
        fp32_bundle, threads=1, cache="float16", max_context=40, max_memory=2 * 10**9
    )
    assert model.model.cache_type == "float16"
    assert model.model.max_context == 40
    unknown: dict[str, Any] = {"cache": "float8"}
    with pytest.raises(InputError, match="cache must be float32, float16, int8"):
        ShoalForCausalLM.from_pretrained(fp32_bundle, **unknown)
