"""Divergence and agreement of distributions, by hand and against torch."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tolerances import SAMPLING_PROBABILITY, STORED_LOG_PROBABILITY

from shoal.runtime.evaluation.metrics import (
    DoubleArray,
    PartRows,
    WholeRows,
    compare,
    log_softmax,
    shared_experts,
)
from shoal.runtime.evaluation.reference_file import (
    LARGEST_REST,
    ReferenceWriter,
    likely_part,
    writing_reference,
)
from shoal.runtime.evaluation.reference_header import ReferenceHeader
from shoal.runtime.evaluation.stored_reference import StoredReference


def random_logits(seed: int, rows: int, width: int, spread: float) -> DoubleArray:
    return np.random.default_rng(seed).normal(0, spread, (rows, width))


def test_divergence_and_agreement_by_hand() -> None:
    p = np.log([[0.5, 0.25, 0.125, 0.0625, 0.03125, 0.03125]])
    q = np.log([[0.25, 0.5, 0.125, 0.03125, 0.0625, 0.03125]])
    found = compare(WholeRows(p), q)
    # 0.5 ln 2 - 0.25 ln 2 + 0.0625 ln 2 - 0.03125 ln 2
    np.testing.assert_allclose(found.kl, [0.28125 * np.log(2)], rtol=SAMPLING_PROBABILITY)
    assert found.same_top.tolist() == [False]
    same = compare(WholeRows(p), p)
    assert (same.kl.tolist(), same.same_top.tolist(), same.shared_top.tolist()) == (
        [0.0],
        [True],
        [1.0],
    )


def test_top_five_counts_the_tokens_both_have() -> None:
    p = log_softmax(np.array([[9.0, 8, 7, 6, 5, 0, 0, 0]]))
    q = log_softmax(np.array([[9.0, 8, 7, 0, 0, 6, 5, 0]]))
    found = compare(WholeRows(p), q)
    assert found.same_top.tolist() == [True]
    assert found.shared_top.tolist() == [3 / 5]


def test_a_whole_part_of_a_distribution_counts_as_one_event() -> None:
    q = np.log([[0.5, 0.2, 0.2, 0.1]])
    known = PartRows(
        best_ids=np.array([[0, 1, 2, 3]]),
        rows=np.array([0, 0]),
        ids=np.array([0, 1]),
        log_probs=np.log([0.6, 0.3]),
        rest=np.array([0.1]),
    )
    expected = 0.6 * np.log(0.6 / 0.5) + 0.3 * np.log(0.3 / 0.2) + 0.1 * np.log(0.1 / 0.3)
    np.testing.assert_allclose(known.divergences(q), [expected], rtol=SAMPLING_PROBABILITY)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    width=st.integers(5, 300),
    spread=st.floats(0.01, 8),
)
def test_divergence_is_that_of_torch(seed: int, rows: int, width: int, spread: float) -> None:
    p, q = (random_logits(seed + n, rows, width, spread).astype(np.float32) for n in range(2))
    expected = torch.nn.functional.kl_div(
        torch.from_numpy(q).double().log_softmax(-1),
        torch.from_numpy(p).double().log_softmax(-1),
        reduction="none",
        log_target=True,
    ).sum(-1)
    found = WholeRows(log_softmax(p)).divergences(log_softmax(q))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-9, atol=SAMPLING_PROBABILITY)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 5),
    width=st.integers(5, 3000),
    spread=st.floats(0, 12),
)
def test_what_is_stored_leaves_out_little(seed: int, rows: int, width: int, spread: float) -> None:
    log_probs = log_softmax(random_logits(seed, rows, width, spread))
    counts, ids, kept, rest = likely_part(log_probs)
    assert counts.min() >= 1
    assert (rest <= LARGEST_REST).all()
    total = np.bincount(np.repeat(np.arange(rows), counts), np.exp(kept)) + rest
    np.testing.assert_allclose(total, 1, rtol=SAMPLING_PROBABILITY)
    # No token left out is likelier than one that is kept by more than a bin's width.
    for row, part in enumerate(np.split(np.arange(len(ids)), np.cumsum(counts)[:-1])):
        left_out = np.delete(log_probs[row], ids[part])
        assert left_out.size == 0 or left_out.max() <= kept[part].min() + 1 / 8


def header_of(windows: list[int], vocab_size: int, layers: int) -> ReferenceHeader:
    return ReferenceHeader(
        model={"sha256": "0" * 64, "name": "n", "weights": "w"},
        tokenizer="1" * 64,
        text={"sha256": "2" * 64, "names": ["y"]},
        vocab_size=vocab_size,
        moe_layers=tuple(range(layers)),
        num_experts_per_tok=2,
        windows=tuple(windows),
        continuations=(),
    )


def test_stored_distributions_come_back(tmp_path: Path) -> None:
    """Over two windows of which one is written in pieces, with and without a rest."""
    vocab_size, lengths = 700, [5, 3]
    wide = [log_softmax(random_logits(n, t, vocab_size, 3)) for n, t in enumerate(lengths)]
    others = [log_softmax(random_logits(n + 9, t, vocab_size, 3)) for n, t in enumerate(lengths)]
    experts = [np.arange(2 * t * 2).reshape(2, t, 2) for t in lengths]
    path = tmp_path / "reference"
    with writing_reference(path, header_of(lengths, vocab_size, 2)) as writer:
        for log_probs, chosen in zip(wide, experts, strict=True):
            for rows in (slice(0, 2), slice(2, len(log_probs))):
                writer.add_rows(WholeRows(log_probs[rows]), log_probs[rows, 7])
            writer.end_window(chosen)
    for index, window in enumerate(StoredReference(path).windows()):
        log_probs, whole = wide[index], WholeRows(wide[index])
        np.testing.assert_array_equal(window.expert_ids, experts[index])
        np.testing.assert_array_equal(window.best_ids, whole.best_ids)
        np.testing.assert_allclose(window.next_log_probs, log_probs[:, 7], rtol=1e-6)
        for rows in (slice(0, 1), slice(1, lengths[index])):
            part = window.rows(rows)
            expected = log_probs[rows][part.rows, part.ids]
            np.testing.assert_allclose(part.log_probs, expected, atol=STORED_LOG_PROBABILITY)
            found = part.divergences(others[index][rows])
            exact = WholeRows(log_probs[rows]).divergences(others[index][rows])
            np.testing.assert_allclose(found, exact, rtol=0.01)


def test_the_size_of_what_is_stored_follows_the_text_not_the_vocabulary() -> None:
    """A token that is nearly certain takes no more room in a large vocabulary than in a small."""
    sizes = []
    for vocab_size in (1000, 50_000):
        logits = np.zeros((4, vocab_size))
        logits[:, 3] = 30
        file = io.BytesIO()
        writer = ReferenceWriter(file)
        writer.add_rows(WholeRows(log_softmax(logits)), np.zeros(4))
        writer.end_window(np.zeros((0, 4, 0), np.int64))
        sizes.append(len(file.getvalue()))
    assert abs(sizes[1] - sizes[0]) < 64


def test_shared_experts_by_hand() -> None:
    reference = np.array([[[0, 1], [2, 3]], [[4, 5], [6, 7]]])  # [layers, tokens, chosen]
    found = np.array([[[1, 0], [2, 9]], [[4, 5], [7, 6]]])
    assert shared_experts(reference, found).tolist() == [0.75, 1.0]
