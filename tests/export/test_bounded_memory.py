"""An export takes the memory of a few rows, whatever the size of the checkpoint."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.export.sparse_checkpoint import V3, write_sparse
from tests.tolerances import FLOAT32_SUMS

from shoal.export.fidelity.head_comparison import HeadComparison

LIMIT_BYTES = 1_500_000_000
WIDE = {
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "intermediate_size": 8192,
    "moe_intermediate_size": 1024,
    "n_routed_experts": 64,
    "vocab_size": 129280,
}


@pytest.mark.slow
def test_tables_and_experts_larger_than_the_limit_are_exported_within_it(
    tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """As float32 the embedding, the head and the experts take 1.1, 1.1 and 1.6 GB."""
    stored = write_sparse(tmp_path / "sparse", V3 | WIDE)
    assert stored > LIMIT_BYTES
    shutil.copy(tiny_checkpoint / "tokenizer.json", tmp_path / "sparse")
    command = [sys.executable, "-m", "shoal.runtime.commands.cli", "export", "--json"]
    options = ["--fidelity-tokens", "64"]
    done = subprocess.run(
        [*command, *options, str(tmp_path / "sparse"), str(tmp_path / "bundle")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["parameters"] * 4 > 2 * LIMIT_BYTES
    assert report["peak_memory_bytes"] <= LIMIT_BYTES
    shutil.rmtree(tmp_path / "bundle")


@pytest.mark.parametrize("step", [1, 7, 50, 97])
def test_distributions_compared_in_parts_are_those_of_the_whole(
    step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "shoal.export.fidelity.head_comparison._LOGITS_AT_A_TIME", 200
    )  # 2 to 18 positions
    generator = torch.Generator().manual_seed(step)
    ids = torch.randint(0, 97, (2, 9), generator=generator)
    a, b = torch.randn(2, 18, 16, generator=generator)
    head = 0.5 * torch.randn(97, 16, generator=generator)
    served = head + 0.1 * torch.randn(97, 16, generator=generator)
    comparison = HeadComparison(ids, a, b)
    for start in range(0, 97, step):
        rows = slice(start, start + step)
        comparison.add(start, head[rows], served[rows])
    found = comparison.finish("text", [torch.tensor([[[1, 2]], [[2, 3]]])])
    p, q = ((x @ w.T).double().log_softmax(-1) for x, w in ((a, head), (b, served)))
    kl = (p.exp() * (p - q)).sum(-1)
    scored = [i for i in range(18) if i % 9 != 8]
    following = ids.flatten().roll(-1)[scored]
    assert found.kl_mean == pytest.approx(kl.mean().item(), rel=FLOAT32_SUMS)
    assert found.kl_max == pytest.approx(kl.max().item(), rel=FLOAT32_SUMS)
    for value, x in ((found.perplexity_reference, p), (found.perplexity, q)):
        expected = x[scored].gather(-1, following[:, None]).mean().neg().exp()
        assert value == pytest.approx(expected.item(), rel=FLOAT32_SUMS)
    assert found.top1_agreement == (p.argmax(-1) == q.argmax(-1)).double().mean().item()
    assert found.router_agreement == 0.5
