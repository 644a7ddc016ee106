"""What it saves to cut the frames of a video into tiles in threads, while the next frame is decoded.

    python -m pvc.benchmarks.preprocessing --threads 2 --pairs 5

A video of each size is read in turns, by one thread and by several, in one process. Tiles are the same. Both
the clock and the processor's time are told: the first gains where cores are free, the second says what the
threads cost.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from pvc.benchmarks.training_rows import VIDEO_FRAMES, VIDEOS, write_video
from pvc.processing_pvc import PVCImageProcessor
from pvc.reporting.markdown import markdown_table

HEADER = ("H.264", "frames", "1 thread ms", "threads ms", "ratio of time", "ratio of CPU time")


def read_s(path: Path, threads: int) -> tuple[float, float, torch.Tensor]:
    """Seconds by the clock and of the processor to read a video, and its tiles."""
    processor = PVCImageProcessor()
    processor.threads = threads
    start, start_cpu = time.perf_counter(), time.process_time()
    media = processor.video(str(path), num_frames=VIDEO_FRAMES)
    return time.perf_counter() - start, time.process_time() - start_cpu, media.tiles


def row(path: Path, size: tuple[int, int], threads: int, pairs: int) -> tuple:
    """Medians of pairs in turns, after one that does not count."""
    ones, others = [], []
    for pair in range(pairs + 1):
        one, other = read_s(path, 1), read_s(path, threads)
        assert torch.equal(one[2], other[2])
        if pair:
            ones.append(one)
            others.append(other)

    milliseconds = [f"{1000 * statistics.median(run[0] for run in runs):.0f}" for runs in (ones, others)]
    ratios = [
        f"{statistics.median(other[i] / one[i] for one, other in zip(ones, others)):.2f}" for i in (0, 1)
    ]
    return (f"{size[0]} x {size[1]}", VIDEO_FRAMES, *milliseconds, *ratios)


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=5)
    chosen = parser.parse_args()

    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in VIDEOS:
            path = Path(folder, f"{size[0]}.mp4")
            write_video(path, size, np.random.default_rng(0))
            rows.append(row(path, size, chosen.threads, chosen.pairs))
    print(f"{chosen.threads} threads, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}\n")
    print(markdown_table(HEADER, rows, align="lrrrrr"))


if __name__ == "__main__":
    main()
