"""How the time of reading a prompt, or of decoding, divides among the ops of a bundle.

``python -m tests.bench.op_shares BUNDLE --depth 2048`` decodes tokens after 2048 others;
``--prefill 512`` reads a prompt. The times are those of onnxruntime's own profiler.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from shoal.runtime import open_bundle
from shoal.runtime.bench.timing import random_ids
from shoal.runtime.engine import session


def main() -> int:
    """Measure and print a table."""
    args = _options()
    with tempfile.TemporaryDirectory() as folder:
        _profile_sessions(Path(folder))
        runs = _run(args)
        microseconds: Counter[str] = Counter()
        for path in Path(folder).iterdir():
            microseconds.update(op_microseconds(json.loads(path.read_text()), runs))
    total = microseconds.total()
    print(f"{total / runs / 1000:.2f} ms a run")
    for op, spent in microseconds.most_common():
        print(f"{op:32} {spent / total:6.1%} {spent / runs / 1000:9.3f} ms")
    return 0


def op_microseconds(events: list[dict[str, Any]], runs: int) -> Counter[str]:
    """Time by op type in the last runs of a session's profile."""
    starts = sorted(event["ts"] for event in events if event["name"] == "model_run")
    times: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["ts"] >= starts[-runs]:
            times[event["args"]["op_name"]] += event["dur"]
    return times


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.op_shares", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--kernels", choices=("native", "portable"), default="native")
    parser.add_argument("--threads", type=int)
    parser.add_argument(
        "--prefill", type=int, help="tokens of a prompt to read, instead of decoding"
    )
    parser.add_argument("--depth", type=int, default=0, help="tokens before the first decoded one")
    parser.add_argument("--runs", type=int, default=20, help="prompts or tokens")
    return parser.parse_args()


def _profile_sessions(folder: Path) -> None:
    plain = session._session_options

    def profiled(settings: session.SessionSettings) -> Any:
        options = plain(settings)
        options.enable_profiling = True
        options.profile_file_prefix = str(folder / "profile")
        return options

    session._session_options = profiled


def _run(args: argparse.Namespace) -> int:
    """Run the model; the profiles are written when it is gone."""
    model = open_bundle(args.bundle, kernels=args.kernels, threads=args.threads)
    context = model.new_context()
    if args.prefill:
        for _ in range(args.runs + 1):
            context.rewind(0)
            context.prefill(random_ids(model, args.prefill))
    else:
        ids = random_ids(model, args.depth + args.runs)
        if args.depth:
            context.prefill(ids[: args.depth])
        for token in ids[args.depth :]:
            context.decode(token)
    return int(args.runs)


if __name__ == "__main__":
    sys.exit(main())
