"""Where things are: the checkpoint of the repository, the tests' reference data, and the findings."""

from pathlib import Path

from pvc import CHECKPOINT

__all__ = ["CHECKPOINT", "FINDINGS", "GOLDEN"]

GOLDEN = Path(__file__).parent.parent / "golden"
FINDINGS = Path(__file__).parent.parent.parent / "fuzz-findings"
