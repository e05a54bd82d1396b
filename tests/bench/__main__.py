"""Compares speed and memory with llama.cpp and with the machine's limits: ``make bench``.

Everything is made once and kept in --work: a checkpoint of random weights, its bundle, llama.cpp
and its own form of the checkpoint. Then rounds: each measures the limits, llama.cpp, the native
and the portable kernels one after another, on the same threads. A ratio is taken inside a round,
where the machine was in one state; the median over the rounds is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from tests.bench import checkpoints, limits, llama_cpp
from tests.bench.processes import FailedError, Watch, run
from tests.bench.summary import Measured, lines_of

from shoal.graphs.parameters import Parameter
from shoal.runtime.bundle import Bundle
from shoal.runtime.machine.processor import default_threads, read_cpu

_SHOAL = (sys.executable, "-m", "shoal.runtime.commands.cli")
_PREFILL, _DEPTHS, _NEW_TOKENS = (128, 512), (0, 512, 2048), 64


def main() -> int:
    """Measure and print; 1 with a message if something fails."""
    args = _options()
    try:
        with_llama = not args.no_llama and llama_cpp.is_buildable()
        if not with_llama:
            _say("without llama.cpp" + ("" if args.no_llama else ": cmake or c++ is missing"))
        measured = _measure(args, with_llama)
    except FailedError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines_of(measured)) + "\n")
    if args.json:
        args.json.write_text(json.dumps(vars(measured), indent=2))
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--model", choices=sorted(checkpoints.PRESETS), default="lite-mini")
    parser.add_argument("--threads", type=int, default=default_threads(read_cpu()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", type=Path, default=Path("build/bench"))
    parser.add_argument("--checkpoint", type=Path, help="take this instead of a random one")
    parser.add_argument("--bundle", type=Path, help="take this instead of exporting one")
    parser.add_argument("--llama", type=Path, help="where llama.cpp is or will be built")
    parser.add_argument("--gguf", type=Path, help="take this instead of converting")
    parser.add_argument("--no-llama", action="store_true", help="measure without llama.cpp")
    parser.add_argument("--no-portable", action="store_true", help="native kernels only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all measurements here")
    return parser.parse_args()


def _measure(args: argparse.Namespace, with_llama: bool) -> Measured:
    work: Path = args.work
    work.mkdir(parents=True, exist_ok=True)
    bundle = args.bundle or _bundle(args)
    probe = limits.build(work)
    llama = None
    if with_llama:
        folder = args.llama or work / "llama"
        _say(f"llama.cpp in {folder} (building it takes minutes)")
        llama = llama_cpp.prepare(folder)
        gguf = args.gguf or work / f"{args.model}-q8_0.gguf"
        if not gguf.is_file():
            _say(f"making {gguf}")
            llama_cpp.convert(folder, _checkpoint(args), gguf)
    measured = Measured(model=args.model, threads=args.threads, rounds=[])
    for number in range(args.rounds):
        _say(f"round {number + 1} of {args.rounds}")
        found: dict[str, Any] = {"limits": limits.measure(probe, args.threads)}
        if llama is not None:
            found["llama.cpp"] = llama_cpp.measure(
                llama, gguf, args.threads, _PREFILL, _DEPTHS, _NEW_TOKENS
            )
        for kernels in ("native",) if args.no_portable else ("native", "portable"):
            found[kernels] = _measure_shoal(bundle, kernels, args.threads)
        measured.rounds.append(found)
    return measured


def _measure_shoal(bundle: Path, kernels: str, threads: int) -> dict[str, Any]:
    options = {
        "--kernels": kernels,
        "--threads": str(threads),
        "--prefill": ",".join(map(str, _PREFILL)),
        "--depths": ",".join(map(str, _DEPTHS)),
        "--new-tokens": str(_NEW_TOKENS),
        "--repeats": "1",
    }
    words = [word for option in options.items() for word in option]
    watch = Watch([*_SHOAL, "bench", str(bundle), "--json", *words])
    report = json.loads(watch.output)
    prefill = {f"prefill {row['tokens']}": row["tokens_per_s"] for row in report["prefill"]}
    decode = {f"decode {row['depth']}": row["tokens_per_s"] for row in report["decode"]}
    reads = {f"decode {row['depth']}": row["read_bytes_per_s"] for row in report["decode"]}
    return {
        "tokens_per_s": prefill | decode,
        "read_bytes_per_s": reads,
        "multiply_adds_per_token": _multiply_adds(bundle),
        "load_s": report["load_ms"] / 1000,
        "anonymous_bytes": watch.anonymous_bytes,
        "resident_bytes": watch.resident_bytes,
    }


def _multiply_adds(bundle: Path) -> int:
    """Multiply-adds of a prompt's token with weights: each once, of the experts the chosen ones.

    The head is left out: it runs for the last token only.
    """
    manifest = Bundle.open(bundle).manifest
    model = manifest.model
    total = 0.0
    for name, info in manifest.tensors.items():
        parameter = Parameter.parse(name)
        if parameter.layer is not None and info.dtype == "uint8":
            is_routed = parameter.is_routed_experts
            share = model.num_experts_per_tok / model.n_routed_experts if is_routed else 1
            total += info.size * share
    return round(total)


def _checkpoint(args: argparse.Namespace) -> Path:
    folder: Path = args.checkpoint or args.work / args.model
    if not folder.is_dir():
        _say(f"making {folder}")
        checkpoints.write_checkpoint(folder, checkpoints.PRESETS[args.model])
    return folder


def _bundle(args: argparse.Namespace) -> Path:
    folder: Path = args.work / f"{args.model}-int8"
    if not folder.is_dir():
        checkpoint = _checkpoint(args)
        _say(f"making {folder}")
        run([*_SHOAL, "export", str(checkpoint), str(folder)])
    return folder


def _say(text: str) -> None:
    sys.stderr.write(f"bench: {text}\n")


if __name__ == "__main__":
    sys.exit(main())
