"""What the repeats of an image cost: TFLOP to the first token with 1 to 4, and their ratio to InternVL2's.

    python -m pvc.benchmarks.image_repeats --preset 8B

Counted on fake tensors in bfloat16, as `pvc bench count` does.
"""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pvc.benchmarks import report
from pvc.benchmarks.counting import count_first_token
from pvc.benchmarks.models import PVC
from pvc.benchmarks.presets import Preset, Workload, find_preset
from pvc.benchmarks.report import Row

REPEATS = (1, 2, 3, 4)
WORKLOADS = (Workload(text_tokens=2048), Workload(tiles=13))


@dataclass(frozen=True)
class RepeatedPVC(PVC):
    """PVC whose images are shown another number of times."""

    image_repeats: int = 4

    @property
    def config(self) -> Any:
        config = super().config
        config.image_repeats = self.image_repeats
        return config


def rows(preset: Preset, workload: Workload) -> list[Row]:
    """A row for each number of repeats."""
    base = flops(PVC("InternVL2, this code", preset, is_internvl2=True), workload)
    found: list[Row] = []
    for repeats in REPEATS:
        spec = RepeatedPVC("PVC", preset, image_repeats=repeats)
        own = flops(spec, workload)
        found.append(
            {
                "image_repeats": repeats,
                "visual tokens": spec.num_visual_tokens(workload),
                "TFLOP": own / 1e12,
                "to InternVL2": own / base,
            }
        )
    return found


def flops(spec: PVC, workload: Workload) -> int:
    """FLOPs to the first token."""
    return sum(cost.flops for cost in count_first_token(spec, workload).values())


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints a Markdown table for each workload."""
    parser = argparse.ArgumentParser(description="What the repeats of an image cost, counted.")
    parser.add_argument("--preset", default="8B", help="as of pvc bench")
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = parser.parse_args(given)

    preset = find_preset(chosen.preset)
    tables = {f"{w.name}, {w.text_tokens:,} tokens of text": rows(preset, w) for w in WORKLOADS}
    command = shlex.join(["python", "-m", "pvc.benchmarks.image_repeats", *given])
    print(report.markdown(report.about(chosen.preset, command), tables), end="")


if __name__ == "__main__":
    main()
