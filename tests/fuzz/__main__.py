"""The command: `python -m tests.fuzz --help`."""

import argparse
import sys
from pathlib import Path

from .paths import FINDINGS
from .runner import Child, Input, Report, run
from .seeds import KINDS, Seed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Reads damaged files.")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="which files; all by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, help="inputs of each kind")
    parser.add_argument("--seconds", type=float, help="in place of --count: time, shared by the kinds")
    parser.add_argument("--jobs", type=int, default=1, help="children side by side")
    parser.add_argument("--replay", type=Path, help="reads a saved input again")
    options = parser.parse_args()
    if options.replay:
        return replay(options.replay)

    kinds, failed = options.kind or list(KINDS), False
    count = options.count if options.count or options.seconds else 1000
    for kind in kinds:
        seconds = options.seconds and options.seconds / len(kinds)
        report = run(kind, options.seed, count, seconds, options.jobs)
        print(f"{kind}, seed {options.seed}: {report}", flush=True)
        save_findings(report)
        failed = failed or bool(report.findings)
    return int(failed)


def save_findings(report: Report):
    for found in report.findings.values():
        FINDINGS.mkdir(exist_ok=True)
        for input_ in found:
            (FINDINGS / input_.name).write_bytes(input_.content)


def replay(path: Path) -> int:
    target, seed, number, name = path.name.split("-", 3)
    content = path.read_bytes()
    child = Child()
    outcome = child.read(Input("", int(seed), int(number), Seed(target, name, content), content))
    child.stop()
    print(f"{path.name}: {outcome}")
    return int(bool(outcome.fault))


if __name__ == "__main__":
    sys.exit(main())
