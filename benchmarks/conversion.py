"""Time and memory of a conversion at full size: `python -m pvc.benchmarks.conversion FOLDER`.

Writes a checkpoint with the names, shapes and files of InternVL2-2B (random weights, bfloat16, 4.4 GB) into
FOLDER, converts it in a process of its own as `pvc convert` does, and prints the time and the largest
anonymous memory of that process (what it allocates; mapped files are the system's to keep or drop). Linux.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from pvc.benchmarks.presets import PRESETS, internvl2_config
from pvc.conversion.files import TensorInfo, write_shards
from pvc.conversion.plan import meta_model

OFFICIAL = {
    "model.projector.norm.": "mlp1.0.",
    "model.projector.mlp.0.": "mlp1.1.",
    "model.projector.mlp.2.": "mlp1.3.",
    "model.language_model.": "language_model.model.",
    "model.vision_model.": "vision_model.",
    "lm_head.": "language_model.output.",
}


def write_internvl2_2b(folder: Path):
    """The checkpoint, with weights drawn from a seed and no tokenizer."""
    config = internvl2_config(PRESETS["2B"])
    infos = {}
    for name, parameter in meta_model(config).state_dict().items():
        prefix = next(prefix for prefix in OFFICIAL if name.startswith(prefix))
        official = OFFICIAL[prefix] + name.removeprefix(prefix)
        infos[official] = TensorInfo(tuple(parameter.shape), torch.bfloat16)

    # random weights, a tensor at a time
    generator = torch.Generator().manual_seed(0)
    folder.mkdir(parents=True)
    with tqdm(total=sum(info.nbytes for info in infos.values()), unit="B", unit_scale=True) as bar:
        write_shards(
            folder,
            infos,
            lambda name: torch.randn(infos[name].shape, generator=generator, dtype=torch.bfloat16) / 50,
            lambda name, nbytes: bar.update(nbytes),
        )

    # what the converter reads beside them
    names = ("downsample_ratio", "template", "ps_version")
    values = {"model_type": "internvl_chat"} | {name: getattr(config, name) for name in names}
    values |= {"vision_config": config.vision_config.to_dict(), "llm_config": config.llm_config.to_dict()}
    (folder / "config.json").write_text(json.dumps(values, indent=2))


def measure(command: list) -> tuple[float, int]:
    """Seconds that `command` takes, and the most anonymous memory in bytes that it has on the way."""
    start, largest = time.monotonic(), 0
    process = subprocess.Popen(command)
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("RssAnon")]
        largest = max([largest, *(1024 * int(n) for n in kilobytes)])
        time.sleep(0.02)

    if process.wait():
        raise SystemExit(f"{command} failed")
    return time.monotonic() - start, largest


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    source, target = folder / "InternVL2-2B", folder / "PVC-2B"
    if not source.exists():
        write_internvl2_2b(source)

    convert = [sys.executable, "-c", "from pvc.cli import app; app()", "convert", source, target]
    options = ["--no-tokenizer", "--image-token-id", "92546", "--overwrite"]
    seconds, largest = measure([*convert, *options])

    written = sum(file.stat().st_size for file in target.glob("*.safetensors"))
    print(
        f"{written / 1e9:.2f} GB written in {seconds:.0f} s, largest anonymous memory "
        f"{largest / 1e9:.2f} GB, torch {torch.__version__}"
    )


if __name__ == "__main__":
    main()
