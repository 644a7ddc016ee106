"""What PVC needs of memory, by formula and measured: `python -m pvc.benchmarks.memory [--measure]`.

By formula, from the configuration alone: weights, the LLM's cache a token, the ViT's hidden states a frame.
Measured: the peak of resident memory of one process that encodes a clip with the ViT and projector of the
8B, random weights, over what it held before the call, in passes of several sizes.
"""

import argparse
import resource
import subprocess
import sys

import torch

from pvc.configuration_pvc import PVCConfig
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel

LLM_2B = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24, "num_attention_heads": 16}
PRESETS = {"2B": {"llm_config": LLM_2B}, "8B": {}}
BYTES_BF16 = 2


def by_formula(name: str, tiles: int = 13, frames: int = 64) -> str:
    """One row of the README's table: gigabytes (10^9) in bfloat16."""
    config = PVCConfig(**PRESETS[name])
    llm, vit = config.llm_config, config.vision_config
    with torch.device("meta"):
        parameters = sum(p.numel() for p in PVCForConditionalGeneration(config).parameters())
    tokens_per_tile = (config.force_image_size // vit.patch_size * config.downsample_ratio) ** 2
    head = llm.hidden_size // llm.num_attention_heads
    cache = 2 * llm.num_hidden_layers * llm.num_key_value_heads * head * BYTES_BF16  # bytes a token
    hidden = ((config.force_image_size // vit.patch_size) ** 2 + 1) * vit.hidden_size * BYTES_BF16  # a frame
    image_tokens = tokens_per_tile * tiles * config.image_repeats
    video_tokens = tokens_per_tile * frames
    return (
        f"| PVC-{name} | {parameters * BYTES_BF16 / 1e9:.2f} | {cache / 1e3:.0f} kB | "
        f"{image_tokens:.0f} tokens, {image_tokens * cache / 1e9:.2f} | "
        f"{video_tokens:.0f} tokens, {video_tokens * cache / 1e9:.2f} | {hidden * frames / 1e9:.2f} |"
    )


def peak_of_encoding(frames: int, max_encoder_tiles: int | None) -> float:
    """Peak resident memory (GB) of encoding a clip in this process, over what was resident; float32."""
    config = PVCConfig(llm_config={"num_hidden_layers": 0}, max_encoder_tiles=max_encoder_tiles)
    with torch.device("meta"):
        model = PVCModel(config)
    # zeros: what is multiplied does not matter here
    model = model.to_empty(device="cpu").eval()
    for parameter in model.parameters():
        parameter.data.zero_()
    pixels, clip_grid = torch.zeros(frames, 3, 448, 448), torch.tensor([[frames, 1, 1]]).repeat(frames, 1)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with torch.no_grad():
        model.get_image_features(pixels, clip_grid)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e9


def main():
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument(
        "--measure", action="store_true", help="encode a clip at the 8B's size (10 GB, minutes)"
    )
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--passes", help=argparse.SUPPRESS)  # how this script calls itself
    arguments = parser.parse_args()
    if arguments.passes:
        passes = None if arguments.passes == "None" else int(arguments.passes)
        print(f"{peak_of_encoding(arguments.frames, passes):.2f}")
        return
    columns = ("GB", "weights", "cache a token", "13-tile image: cache", "64 frames: cache", "64 frames: ViT")
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    print("\n".join(by_formula(name) for name in PRESETS))
    if arguments.measure:
        hidden = arguments.frames * 1025 * 1024 * 4 / 1e9
        print(
            f"\n{arguments.frames} frames, float32, hidden states {hidden:.2f} GB; peak over what was held:"
        )
        for passes in ("None", "4", "1"):
            command = [sys.executable, "-m", "pvc.benchmarks.memory", "--passes", passes]
            command += ["--frames", str(arguments.frames)]
            peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            print(f"max_encoder_tiles {passes}: {peak} GB", flush=True)


if __name__ == "__main__":
    main()
