"""What it saves to fetch the rows of a training step one by one, and their tiles as bytes.

    python -m pvc.benchmarks.training_rows --rows 96 --pairs 3
    python -m pvc.benchmarks.training_rows --decoding --pairs 5

Two ways to the rows of one step of one process, from JPEG files to the tiles that the model takes: all of
them before the first is trained on, as float32 (as transformers' Trainer asks for them), and each when it is
needed, as bytes that are normalised last (as `PVCTrainer` does). Nothing is trained. The ways take turns,
each time in a process of its own, on one core and without workers. Times are those of the processor, so that
other processes do not disturb them.

`--decoding` compares JPEG files and videos of several sizes decoded whole with the options `reduced_jpegs`
and `reduced_frames`.
"""

import argparse
import importlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import AutoTokenizer

from pvc import CHECKPOINT
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.training.data.encoding import Encoder
from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.samples import Sample
from pvc.training.data.sources import FileSource, VideoFileSource

WAYS = {"all": "all rows first, float32", "needed": "each when needed, bytes"}
COLUMNS = ("CPU s to the first row", "CPU s for the step", "memory MB")
IMAGE = (800, 600)  # 12 tiles and a thumbnail
FILES = 8
PHOTOGRAPHS = ((1600, 1200), (3000, 2000), (6000, 4000))
VIDEOS = ((640, 360), (1280, 720), (1920, 1080))
VIDEO_FRAMES = 16


def write_image(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """A JPEG file as smooth as a photograph."""
    smooth_image(size, rng).save(path, quality=90)


def smooth_image(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    """An image whose colours change over ten pixels."""
    width, height = size
    coarse = Image.fromarray(rng.integers(0, 256, (height // 10, width // 10, 3), np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def write_video(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """An H.264 file of a smooth image that moves."""
    av = importlib.import_module("av")
    width, height = size
    scene = smooth_image((width + 2 * VIDEO_FRAMES, height + 2 * VIDEO_FRAMES), rng)

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.width, stream.height = size
        stream.pix_fmt = "yuv420p"
        for i in range(VIDEO_FRAMES):
            frame = av.VideoFrame.from_image(scene.crop((2 * i, i, 2 * i + width, i + height)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def write_data(folder: Path) -> Path:
    """Photograph-like JPEG files, two in a sample, and their meta JSON."""
    rng = np.random.default_rng(0)
    for i in range(FILES):
        write_image(folder / f"{i}.jpg", IMAGE, rng)

    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "An image."}]
    lines = [json.dumps({"image": f"{i}.jpg", "conversations": talk}) for i in range(FILES)]
    (folder / "data.jsonl").write_text("\n".join(lines), encoding="utf-8")

    meta = folder / "meta.json"
    meta.write_text(json.dumps({"images": {"root": str(folder), "annotation": str(folder / "data.jsonl")}}))
    return meta


def make_dataset(meta: Path, tile_size: int, max_tokens: int = 8192) -> PackedDataset:
    """Rows of images; by default as long as those of the 2B and 8B."""
    return PackedDataset(meta, make_processor(tile_size), DataOptions(max_tokens=max_tokens))


def make_processor(tile_size: int) -> PVCProcessor:
    """That of a model with the published tiles and the tokenizer of PVC-Tiny."""
    tokenizer = AutoTokenizer.from_pretrained(str(CHECKPOINT), trust_remote_code=True)
    return PVCProcessor(PVCImageProcessor(image_size=tile_size), tokenizer, template="internlm2-chat")


def fetch(way: str, dataset: PackedDataset, rows: int) -> dict[str, float]:
    """Fetches the rows of a step; processor time, and memory beyond that of the process at its start."""
    before = _peak_bytes()
    start = time.process_time()
    if way == "all":
        fetched = list(islice(PackLoader(dataset), rows))
        first_s = time.process_time() - start
        del fetched
    else:
        loader = PackLoader(dataset, rows_ahead=rows, as_bytes=True)
        numbered = iter(loader)
        numbered.labels_of_next(rows)
        for i in range(rows):
            row = next(numbered)
            row["pixel_values"] = dataset.encoder.normalise(row["pixel_values"])
            first_s = time.process_time() - start if i == 0 else first_s

    values = (first_s, time.process_time() - start, (_peak_bytes() - before) / 1e6)
    return dict(zip(COLUMNS, values))


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(rows: int, pairs: int, tile_size: int, folder: Path) -> dict[str, list[dict[str, float]]]:
    """The figures of each way, one dict a pair."""
    meta = write_data(folder)
    found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(pairs):
        for way in WAYS:
            command = [
                sys.executable,
                "-m",
                "pvc.benchmarks.training_rows",
                "--way",
                way,
                "--data",
                str(meta),
            ]
            command += ["--rows", str(rows), "--tile-size", str(tile_size)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[way].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def samples_to_decode(folder: Path) -> Iterator[tuple[str, Sample]]:
    """A photograph or a video of each size, written as it is asked for."""
    for size in PHOTOGRAPHS:
        path = folder / f"{size[0]}.jpg"
        write_image(path, size, np.random.default_rng(0))
        images = (FileSource(str(path)),)
        yield f"JPEG {size[0]} x {size[1]}", Sample("a:1", (("<image>", "It."),), images=images)

    for size in VIDEOS:
        path = folder / f"{size[0]}.mp4"
        write_video(path, size, np.random.default_rng(0))
        video = VideoFileSource(str(path))
        yield f"H.264 {size[0]} x {size[1]}", Sample("a:1", (("<video>", "It."),), video=video)


def compare_decoding(pairs: int, folder: Path) -> str:
    """A table of the times of both ways to decode an image into tiles, and of how much they differ."""
    processor = make_processor(448)
    frames = {"min_frames": VIDEO_FRAMES, "max_frames": VIDEO_FRAMES}
    whole = Encoder(processor, **frames)
    reduced = Encoder(processor, **frames, reduced_jpegs=True, reduced_frames=True)
    lines = [
        "| file | tiles | whole CPU ms | reduced CPU ms | ratio | mean difference of 255 |",
        "|---" * 6 + "|",
    ]
    for name, sample in samples_to_decode(folder):
        encoded = whole.encode(sample, None, np.random.default_rng(0))

        times: list[list[float]] = []
        for _ in range(pairs):
            times.append([])
            tiles = []
            for encoder in (whole, reduced):
                start = time.process_time()
                tiles.append(encoder.load(encoded, as_bytes=True))
                times[-1].append(time.process_time() - start)

        one, other = tiles
        medians = [1000 * statistics.median(column) for column in zip(*times)]
        ratio = statistics.median(pair[1] / pair[0] for pair in times)
        difference = (one.float() - other.float()).abs().mean().item()
        cells = [name, len(one), *(f"{ms:.0f}" for ms in medians)]
        lines.append("| " + " | ".join(map(str, [*cells, f"{ratio:.2f}", f"{difference:.2f}"])) + " |")
    return "\n".join(lines)


def as_table(found: dict[str, list[dict[str, float]]], rows: int) -> str:
    """Medians of each way, and of the ratios of the pairs."""
    lines = [f"| {rows} rows of a step | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for way, name in WAYS.items():
        medians = [statistics.median(run[column] for run in found[way]) for column in COLUMNS]
        lines.append(f"| {name} | " + " | ".join(f"{median:.2f}" for median in medians) + " |")

    ratios = [
        statistics.median(new[column] / old[column] for old, new in zip(found["all"], found["needed"]))
        for column in COLUMNS
    ]
    return "\n".join([*lines, "| ratio | " + " | ".join(f"{ratio:.3f}" for ratio in ratios) + " |"])


def main() -> None:
    """Prints the table; in the processes that it starts, the figures of one way."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=96, help="packed rows of a step of one process")
    parser.add_argument("--pairs", type=int, default=3, help="how often each way is taken")
    parser.add_argument("--tile-size", type=int, default=448, help="side of a tile in pixels")
    parser.add_argument(
        "--decoding", action="store_true", help="compare reduced_jpegs and reduced_frames instead"
    )
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()

    torch.set_num_threads(1)
    if arguments.way:
        dataset = make_dataset(arguments.data, arguments.tile_size)
        print(json.dumps(fetch(arguments.way, dataset, arguments.rows)))
        return

    with tempfile.TemporaryDirectory() as folder:
        if arguments.decoding:
            print(compare_decoding(arguments.pairs, Path(folder)))
            return
        found = measure(arguments.rows, arguments.pairs, arguments.tile_size, Path(folder))
    print(as_table(found, arguments.rows))


if __name__ == "__main__":
    main()
