"""The ViT of PVC-Tiny learns to see varied scenes as a teacher sees plain ones.

    torchrun --nproc-per-node 2 -m pvc.tiny.vision_distillation FOLDER --teacher MODEL     on two cores

A scene is drawn twice: with variations (other backgrounds, faces, sizes, noise: `synthetic/variations.py`),
and plainly. The ViT of FOLDER is shown the first and trained to give the features that the teacher's gives of
the second, patch by patch, and the visual tokens that the projector makes of them. Its LLM, which can read
the teacher's tokens of plain scenes, can read those of varied ones then: nothing about letters and shapes is
learnt anew, and no answers are needed. Dense labels would teach the ViT the same, in tokens that are new to
the LLM.

Plain scenes have no capitals: where a varied one has them, the teacher is shown lower-case letters.
"""

import argparse
from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from random import Random
from typing import NamedTuple

import torch
from torch import nn

from pvc.clips import ClipLayout
from pvc.modeling_pvc import PVCForConditionalGeneration, PVCModel
from pvc.tiny import packed_cpu_attention as cpu_attention
from pvc.tiny.dense_labels import LabelledClips, drawn_tile, sampled_frames
from pvc.tiny.synthetic.image_tasks import ONE_TILE
from pvc.tiny.synthetic.sampler import TILE, tiles_of
from pvc.tiny.synthetic.scenes import (
    FACES,
    LETTER_HEIGHTS,
    Box,
    Scene,
    Style,
    Text,
    text_extent,
)
from pvc.tiny.synthetic.variations import LIGHT, SHARES
from pvc.tiny.vision_steps import best_device, rank, start_processes, train
from pvc.training.optimizer import IS_MATRIX, MuonWithAdamW, is_matrix

CHECKPOINT = "vision_distillation.pt"
BACKGROUND = (240, 240, 240)  # of what was not on a light one
MOST_ENLARGED = 2  # texts of a scene: where there are more, they have no room to grow


# ------------------------------------------------------------------------------------------------- scenes


def plain(scene: Scene) -> Scene:
    """The scene in the plain style, its sides multiples of a tile: see `variations.py`.

    What is in it keeps its place and size, in parts of the image. A text of another face, or of capitals, is
    as wide as it was; one that is lower than plain texts grows where there is room.
    """
    columns, rows = tiles_of(scene.size)
    size = columns * TILE, rows * TILE
    across, down = size[0] / scene.size[0], size[1] / scene.size[1]
    unit = sqrt(across * down)

    is_light = min(scene.background) >= LIGHT[0]
    may_grow = len(scene.texts) <= MOST_ENLARGED
    return Scene(
        size,
        scene.background if is_light else BACKGROUND,
        tuple(
            shape._replace(x=shape.x * across, y=shape.y * down, radius=round(shape.radius * unit))
            for shape in scene.shapes
        ),
        tuple(_plain_text(text, across, down, size, may_grow) for text in scene.texts),
        tuple(bar._replace(box=_scaled(bar.box, across, down)) for bar in scene.bars),
        Style(),
    )


def _scaled(box: Box, across: float, down: float) -> Box:
    return box[0] * across, box[1] * down, box[2] * across, box[3] * down


def _plain_text(text: Text, across: float, down: float, size: tuple[int, int], may_grow: bool) -> Text:
    letters, lowest = text.text.lower(), LETTER_HEIGHTS[0]
    is_high_enough = text.letter_height >= lowest or not may_grow
    if across == down == 1 and text.face == FACES[0] and letters == text.text and is_high_enough:
        return text._replace(smooth=False)

    # letters of a height that makes it as wide as it was
    left, top, right, bottom = _scaled(text.box, across, down)
    low, _, high, _ = text_extent(letters, LETTER_HEIGHTS[1])
    height = max(round(LETTER_HEIGHTS[1] * (right - left) / (high - low)), lowest if may_grow else 1)
    while True:
        extent = text_extent(letters, height)
        room = size[0] - (extent[2] - extent[0]), size[1] - (extent[3] - extent[1])
        if min(room) >= 0 or height == 1:
            break
        height -= 1

    # around the same middle, within the image
    corner = [
        min(max((low + high - side + space) / 2, 0), max(space, 0))
        for low, high, side, space in zip((left, top), (right, bottom), size, room)
    ]
    return Text(letters, round(corner[0] - extent[0]), round(corner[1] - extent[1]), height)


class Pair(NamedTuple):
    """A tile of an image, or frames of a video, as the student sees them and as the teacher does."""

    tiles: torch.Tensor  # (frames, 3, TILE, TILE)
    plain: torch.Tensor  # the same
    grid: torch.Tensor  # (frames, 3): see `InternVisionModel.forward`

    def to(self, device: torch.device) -> "Pair":
        """Tiles there; the grid stays, its values are read."""
        return self._replace(tiles=self.tiles.to(device), plain=self.plain.to(device))


class Pairs(LabelledClips):
    """The clips of `LabelledClips`, each as a `Pair`.

    Attributes:
        plain_share: of clips that the student sees plainly, too.
    """

    plain_share = 0.0

    @staticmethod
    def collate(pairs: list[Pair]) -> Pair:  # type: ignore[override]
        return Pair(*map(torch.cat, zip(*pairs)))

    def _scenes(self, task: str, index: int) -> list[Scene]:
        scenes = super()._scenes(task, index)
        is_plain = Random(f"{self.seed}/{index}/plain").random() < self.plain_share
        return [plain(scene) for scene in scenes] if is_plain else scenes

    def image(self, scene: Scene, box: Box) -> Pair:  # type: ignore[override]
        same = plain(scene)
        across, down = same.size[0] / scene.size[0], same.size[1] / scene.size[1]
        shown = drawn_tile(scene, box), drawn_tile(same, _scaled(box, across, down))
        return Pair(*(tile[None] for tile in shown), torch.tensor([[1, 1, self.repeats]]))

    def video(self, scenes: list[Scene]) -> Pair:  # type: ignore[override]
        chosen = sampled_frames(scenes, self.frames)
        box = (0, 0, *ONE_TILE)
        return Pair(
            torch.stack([drawn_tile(scene, box) for scene in chosen]),
            torch.stack([drawn_tile(plain(scene), box) for scene in chosen]),
            torch.tensor([[self.frames, 1, 1]] * self.frames),
        )


# --------------------------------------------------------------------------------------------- training


class Student(nn.Module):
    """A ViT that is to give what the teacher's gives of plain scenes.

    The projector and the teacher are not trained, and not in the state.
    """

    def __init__(self, model: PVCModel, teacher: PVCModel):
        super().__init__()
        self.vit = model.vision_model
        self.frozen = (teacher.vision_model.eval(), teacher.projector.eval())
        self.side = TILE // model.config.vision_config.patch_size

    def loss(self, pair: Pair) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The sum of the errors of patches and visual tokens, and both.

        An error is the mean square of differences, in parts of the variance of what the teacher gives.
        """
        clips = ClipLayout.from_grid(pair.grid, len(pair.tiles)).to(pair.tiles.device)
        vit, projector = self.frozen
        grid = (self.side, self.side)
        with torch.no_grad():
            wanted_patches = vit(pair.plain, clips=clips).last_hidden_state
            wanted_tokens = projector(wanted_patches, clips.times, grid=grid)

        patches = self.vit(pair.tiles, clips=clips).last_hidden_state
        tokens = projector(patches, clips.times, grid=grid)
        errors = {
            "patches": _error(patches[:, 1:], wanted_patches[:, 1:]),
            "visual tokens": _error(tokens, wanted_tokens),
        }
        return sum(errors.values(), torch.zeros(())), errors

    def report(self, pair: Pair, errors: dict[str, torch.Tensor]) -> dict[str, float]:
        """The errors."""
        return {f"error of {name}": error.item() for name, error in errors.items()}


def _error(given: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """The mean square of differences `(R, N, C)`, in parts of the variance over rows and places."""
    variance = wanted.float().flatten(0, 1).var(0).mean()
    return (given.float() - wanted.float()).square().mean() / variance


def distil(
    model: PVCModel,
    teacher: PVCModel,
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
    tasks: tuple[str, ...] | None = None,
    variations: Mapping[str, float] = SHARES,
    plain_share: float = 0.0,
    workers: int = 0,
    checkpoint: Path | None = None,
) -> None:
    """Trains the ViT of `model` in place; `teacher` has its size. Errors are logged.

    Args:
        seed, tasks, variations: of the scenes, as of `LabelledClips`.
        plain_share: as of `Pairs`.
        workers, checkpoint: as of `train`.

    Raises:
        ValueError: the projectors differ: what the ViT learns would be for the teacher's; and as `train`.
    """
    own, others = model.projector.state_dict(), teacher.projector.state_dict()
    if own.keys() != others.keys() or not all(torch.equal(own[name], others[name]) for name in own):
        raise ValueError("the teacher has another projector: expected the same, whose tokens the LLM knows")

    student = Student(model, teacher).to(model.device)
    matrices = {name: is_matrix(name, parameter) for name, parameter in student.vit.named_parameters()}
    optimizer = MuonWithAdamW(
        [
            {
                "params": [p for name, p in student.vit.named_parameters() if matrices[name] == are_matrices],
                "lr": (3 if are_matrices else 1) * learning_rate,
                IS_MATRIX: are_matrices,
                "weight_decay": 0.0,
            }
            for are_matrices in (True, False)
        ],
        learning_rate,
        betas=(0.9, 0.98),
    )
    pairs = Pairs.for_model(model, seed, tasks, variations)
    pairs.plain_share = plain_share
    train(
        student,
        optimizer,
        pairs,
        steps=steps,
        batch=batch,
        device=model.device,
        workers=workers,
        checkpoint=checkpoint,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="a PVC-Tiny, whose ViT is trained")
    parser.add_argument("--teacher", type=Path, required=True, help="one that sees plain scenes well")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument(
        "--plain-share", type=float, default=0.0, help="of clips that the student sees plainly, too"
    )
    parser.add_argument("--workers", type=int, default=0, help="processes that draw")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    start_processes()
    device = best_device()
    model, teacher = (
        PVCForConditionalGeneration.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation=cpu_attention.NAME if device.type == "cpu" else "sdpa",
        ).to(device)
        for folder in (arguments.folder, arguments.teacher)
    )

    checkpoint = arguments.folder / CHECKPOINT
    distil(
        model.model,
        teacher.model,
        steps=arguments.steps,
        batch=arguments.batch,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        plain_share=arguments.plain_share,
        workers=arguments.workers,
        checkpoint=checkpoint,
    )
    if rank() == 0:
        model.save_pretrained(arguments.folder)
        checkpoint.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
