"""What ``make bench`` is made of: checkpoints, limits, watched programs, medians of ratios."""

from __future__ import annotations

import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.bench import checkpoints, limits, llama_cpp
from tests.bench.op_shares import op_microseconds
from tests.bench.processes import FailedError, Watch, run
from tests.bench.summary import Measured, limit_share, lines_of

from shoal.export.checkpoint.safetensors_files import SafetensorsFiles
from shoal.export.checkpoint.tensor_names import parameter_sources
from shoal.export.config.model_config import ModelConfig

SMALL = {
    "vocab_size": 4096,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "kv_lora_rank": 32,
    "intermediate_size": 96,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
}

# Answers as llama-bench does, a line for each measurement.
FAKE_LLAMA_BENCH = """#!{python}
import json, sys
def numbers(flag):
    return map(int, sys.argv[sys.argv.index(flag) + 1].split(","))
print("llama-bench: benchmark 1/2: starting", file=sys.stderr, flush=True)
print("llama-bench: benchmark 1/2: warmup prompt run", file=sys.stderr, flush=True)
if "-d" in sys.argv:
    for depth in numbers("-d"):
        print(json.dumps(dict(n_prompt=0, n_gen=8, n_depth=depth, avg_ts=100.0 - depth)))
else:
    for length in numbers("-p"):
        print(json.dumps(dict(n_prompt=length, n_gen=0, n_depth=0, avg_ts=2.0 * length)))
"""


@pytest.mark.parametrize("preset", sorted(checkpoints.PRESETS))
def test_random_checkpoints_hold_what_an_export_needs(tmp_path: Path, preset: str) -> None:
    config = checkpoints.PRESETS[preset] | SMALL
    for name in ("one", "two"):
        checkpoints.write_checkpoint(tmp_path / name, config)
    files = [tmp_path / name / "model.safetensors" for name in ("one", "two")]
    assert files[0].read_bytes() == files[1].read_bytes()
    checkpoint = SafetensorsFiles.open(tmp_path / "one")
    parameter_sources(ModelConfig.from_hf(config), checkpoint)  # refuses missing tensors
    raw = np.frombuffer(files[0].read_bytes()[-4096:], np.uint16).astype(np.uint32) << 16
    assert 0 < np.abs(raw.view(np.float32)).max() < 1


def test_the_limits_of_the_machine_are_measured(tmp_path: Path) -> None:
    program = limits.build(tmp_path)
    found = limits.measure(program, 2, megabytes=8)
    assert found["threads"] == 2
    assert found["read_bytes_per_s"] > 0
    assert found["multiply_adds_per_s"] > 0


def test_a_watched_program_tells_its_memory_and_when_it_spoke() -> None:
    script = (
        "import sys, time\nprint('begin', file=sys.stderr, flush=True)\nheap = b'x' * 60_000_000\n"
        "time.sleep(0.3)\nprint('then', file=sys.stderr, flush=True)\nprint('result')"
    )
    watch = Watch([sys.executable, "-c", script])
    assert watch.output == "result\n"
    assert watch.anonymous_bytes >= 60_000_000
    assert watch.resident_bytes > watch.anonymous_bytes
    assert watch.seconds_between("begin", "then") >= 0.3


@pytest.mark.parametrize("runner", [Watch, run])
def test_a_failing_program_is_one_line(runner: Any) -> None:
    script = "import sys; sys.exit('first\\nno such model')"
    with pytest.raises(FailedError, match=r"exited with 1: no such model$"):
        runner([sys.executable, "-c", script])


def test_figures_of_llama_bench_are_read(tmp_path: Path) -> None:
    program = tmp_path / "llama-bench"
    program.write_text(FAKE_LLAMA_BENCH.format(python=sys.executable))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    found = llama_cpp.measure(program, tmp_path / "m.gguf", 1, (128, 512), (0, 16), 8)
    assert found["tokens_per_s"] == {
        "prefill 128": 256,
        "prefill 512": 1024,
        "decode 0": 100,
        "decode 16": 84,
    }
    assert found["load_s"] >= 0


def one_round(llama: float, native: float, read_limit: float) -> dict[str, Any]:
    sizes = {"load_s": 0.5, "anonymous_bytes": 3e6, "resident_bytes": 4e6}
    return {
        "limits": {
            "read_bytes_per_s": read_limit,
            "multiply_adds_per_s": 1e9,
            "instructions": "none",
        },
        "llama.cpp": {"tokens_per_s": {"prefill 8": 10.0, "decode 0": llama}, **sizes},
        "native": {
            "tokens_per_s": {"prefill 8": 50.0, "decode 0": native},
            "read_bytes_per_s": {"decode 0": native * 100},
            "multiply_adds_per_token": 10_000_000,
            **sizes,
        },
    }


def test_ratios_and_shares_are_taken_inside_a_round() -> None:
    # The machine is half as fast in the second round and a third in the third.
    rounds = [one_round(60, 120, 24_000), one_round(30, 60, 12_000), one_round(20, 20, 8_000)]
    measured = Measured(model="m", threads=2, rounds=rounds)
    decode = next(line for line in lines_of(measured) if line.startswith("decode 0"))
    assert decode.split()[3:] == ["30.0", "60.0", "2.00", "50%"]
    assert limit_share(rounds[0], "prefill 8") == pytest.approx(0.5)


def test_time_is_summed_by_op_over_the_last_runs() -> None:
    def node(op: str, ts: int, dur: int) -> dict[str, Any]:
        return {"cat": "Node", "name": op, "ts": ts, "dur": dur, "args": {"op_name": op}}

    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 50} for ts in (300, 100, 200)]
    nodes = [node("Linear", 110, 40), node("Linear", 210, 10), node("Mul", 220, 3)]
    assert op_microseconds([*nodes, *runs, node("Linear", 310, 5)], 2) == {"Linear": 15, "Mul": 3}


def test_the_profile_of_a_bundle_names_its_ops(int8_bundle: Path) -> None:
    command = [sys.executable, "-m", "tests.bench.op_shares", str(int8_bundle)]
    lines = run([*command, "--threads", "1", "--depth", "8", "--runs", "3"]).splitlines()
    shares = {line.split()[0]: float(line.split()[1].rstrip("%")) for line in lines[1:]}
    assert {"Linear", "SparseExperts", "LatentAttention", "RMSNormalization"} <= set(shares)
    assert sum(shares.values()) == pytest.approx(100, abs=2)
