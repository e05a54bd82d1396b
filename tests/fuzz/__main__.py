"""Fuzzes the readers of all formats: ``make fuzz MINUTES=60``, or ``python -m tests.fuzz``.

Every input is answered with exit code 1 and one line that says what to do, in bounded time and
memory, with nothing written outside the target; or it is sound. Everything else is a finding: its
input is kept with the command that repeats it.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from tests.fuzz.campaign import ROOT, Campaign, Plan, Tally
from tests.fuzz.fuzz_format import FORMATS
from tests.fuzz.samples import make_samples
from tests.fuzz.verdict import FAULTS, SOUND

BUILD = ROOT / "build" / "fuzz"
_WITHOUT_END = 1_000_000_000


def main() -> int:
    """Run what the command line asks for; 1 if anything was found."""
    args = _parser().parse_args()
    samples = make_samples(args.build)
    formats = args.format or list(FORMATS)
    tallies: dict[str, Tally] = {}
    for name in formats:
        seconds = float("inf") if args.minutes is None else 60 * args.minutes / len(formats)
        endless = _WITHOUT_END if args.minutes is not None else 1000
        plan = Plan(
            module=f"tests.fuzz.formats.{name}",
            samples=samples,
            scratch=args.build / "scratch" / name,
            findings=args.build / "findings",
            seed=args.seed,
            first=args.case or 0,
            count=1 if args.case is not None else args.cases or endless,
            deadline_s=time.monotonic() + seconds,
        )
        tallies[name] = Campaign(plan).run()
        print(row(name, tallies[name]), flush=True)
        for finding in tallies[name].findings:
            print(f"  {finding}", file=sys.stderr, flush=True)
    found = any(tally.findings for tally in tallies.values())
    if found:
        print(f"inputs and commands: {args.build / 'findings'}", file=sys.stderr)
    return int(found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument(
        "--format", action="append", choices=FORMATS, help="one format; all without it"
    )
    parser.add_argument("--minutes", type=float, help="time in all, shared by the formats")
    parser.add_argument("--cases", type=int, help="cases of each format; 1000 without --minutes")
    parser.add_argument("--seed", type=int, default=1, help="another one makes other cases")
    parser.add_argument("--case", type=int, help="this one only, to repeat it")
    parser.add_argument("--build", type=Path, default=BUILD, help="folder for what is made")
    return parser


def row(name: str, tally: Tally) -> str:
    """What came of a format, in one line."""
    counts = ", ".join(f"{kind} {tally.counts[kind]}" for kind in (*SOUND, *FAULTS))
    pace = tally.cases / tally.wall_s if tally.wall_s else 0.0
    most = f"slowest {tally.slowest_s:.1f} s, most memory {tally.most_bytes >> 20} MB"
    return f"{name}: {tally.cases} cases: {counts}; {pace:.0f} per s, {most}"


if __name__ == "__main__":
    sys.exit(main())
