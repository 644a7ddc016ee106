"""Clips: what the tiles of a call are, and how many visual tokens they make.

A `Clip` is one temporal sequence: a video, or an image repeated in time. A list of clips in prompt order is
written in three ways, and this file holds all of them:

    num_patches_list, data_flag, split_sizes   the released `chat`      -> `released_clips`
    clip_grid (num_tiles, 3 or 4)              the model's inputs       <- `clip_grid_of`, -> `clips_of_grid`
    ClipLayout                                 the ViT's index tensors  <- `ClipLayout.from_grid`

`clip_grid` has one row a tile, as serving engines slice it row by row with `pixel_values` (compare Qwen's
`video_grid_thw`, which has one row a video): frames, tiles a frame and repeats of the tile's clip, and
where a clip's number of tokens is not the model's own, the visual tokens of one showing of a tile. Whoever
lays out the prompt decides that number (`compressors.TokenBudget`), and the model obeys.
Pixels and prompts are left to the other files.

A frame shown `r` times makes `r` time steps, so that a clip has `T = frames * repeats` of them. A tile
sequence is one tile position of a clip through its time steps: what temporal attention runs over.

Shapes: `num_tiles` tiles as they are given, unrepeated; `R` rows, one for each tile and time step.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import index
from typing import NamedTuple

import torch
from einops import repeat

ONE_IMAGE, SEVERAL_IMAGES, VIDEO = 1, 2, 3  # values of the released data_flag


class Clip(NamedTuple):
    """One temporal sequence: a video (`frames` > 1) or an image.

    Each frame has `tiles` tiles and is shown `repeats` times. One showing of a tile makes `tokens` visual
    tokens; None: as many as the model makes by itself.
    """

    frames: int
    tiles: int
    repeats: int
    tokens: int | None = None


# ---- number of visual tokens


def tokens_of_tile(size: tuple[int, int], patch_size: int, downsample_ratio: float) -> int:
    """Visual tokens of one tile of `size` (height, width) pixels, shown once: 64 for 448 x 448 at 0.25."""
    rows, columns = (round(side / patch_size * downsample_ratio) for side in size)
    return rows * columns


def tokens_of_clip(clip: Clip, tokens_per_tile: int) -> int:
    """Visual tokens of a clip, repeats included.

    `tokens_per_tile`: the model's own number, for clips that have none; `tokens_of_tile` counts it.
    """
    return clip.frames * clip.tiles * clip.repeats * (clip.tokens or tokens_per_tile)


def media_tokens(clips: Iterable[Clip], tokens_per_tile: int) -> list[int]:
    """Visual tokens of each media segment: one segment an image, one a frame of a video."""
    counts = []
    for clip in clips:
        tokens_of_frame = tokens_of_clip(clip, tokens_per_tile) // clip.frames
        counts += [tokens_of_frame] * clip.frames
    return counts


# ---- clip_grid


def clip_rows(clips: Iterable[Clip]) -> list[list[int]]:
    """Rows of `clip_grid`, one a tile: frames, tiles a frame and repeats of the tile's clip.

    A fourth column has the tokens of a tile where any clip has a number of its own; 0 stands for the model's.
    """
    clips = list(clips)
    has_tokens = any(clip.tokens is not None for clip in clips)
    rows = []
    for clip in clips:
        row = [clip.frames, clip.tiles, clip.repeats]
        row += [clip.tokens or 0] if has_tokens else []
        rows += [row] * (clip.frames * clip.tiles)
    return rows


def clip_grid_of(clips: Iterable[Clip]) -> torch.Tensor | None:
    """`clip_grid (num_tiles, 3 or 4)` of clips in prompt order; None where there are none."""
    rows = clip_rows(clips)
    return torch.tensor(rows) if rows else None


def clips_of_grid(clip_grid: torch.Tensor, num_tiles: int) -> Iterator[tuple[int, Clip]]:
    """Yields the first tile of each clip, and the clip.

    Raises:
        ValueError: where `clip_grid` has another shape, or its rows do not add up to whole clips.
    """
    if not isinstance(clip_grid, torch.Tensor):
        raise ValueError(f"clip_grid is a {type(clip_grid).__name__}: expected a tensor ({num_tiles}, 3)")
    is_shaped = clip_grid.shape in ((num_tiles, 3), (num_tiles, 4))
    if not is_shaped or clip_grid.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            f"clip_grid is {clip_grid.dtype} {tuple(clip_grid.shape)}, expected integers ({num_tiles}, 3): "
            f"frames, tiles a frame and repeats of the clip of each of the {num_tiles} tiles of pixel_values "
            "(and perhaps the tokens of a tile)"
        )

    # each clip begins where the one before ends
    rows = clip_grid.tolist()
    start = 0
    while start < num_tiles:
        row = rows[start]
        frames, tiles, repeats = row[:3]
        tokens = row[3] if len(row) == 4 else 0  # 0: the model's own number
        end = start + frames * tiles

        # all tiles of a clip say the same of it
        if min(row[:3]) < 1 or tokens < 0 or rows[start:end] != [row] * (frames * tiles):
            said = f"{frames} frames of {tiles} tiles, {repeats} repeats"
            said += f", {tokens} tokens a tile" if len(row) == 4 else ""
            raise ValueError(
                f"clip_grid row {start} says {said}: expected "
                f"positive numbers and {frames * tiles} such rows in a row, got {rows[start:end]}"
            )
        yield start, Clip(frames, tiles, repeats, tokens or None)
        start = end


# ---- rows of the ViT


@dataclass
class ClipLayout:
    """Which rows of the ViT's batch are the time steps of which clip.

    Attributes:
        source: `(R,)` index of the tile that each row shows.
        times: `(R,)` float32, time of each row: `f / (T - 1)` for time step `f` of `T`, 0 where `T` is 1.
        tile_sequences: for each `T`, `(sequences, T)`: the rows of the tile sequences with `T` time steps,
            in order of time.
        rows_per_clip: rows of each clip; the rows of a clip stand together.
        repeated: whether any tile is shown more than once.
        time_order: `(R,)` the rows as `by_time_step` has them; None: they stand so already.
    """

    source: torch.Tensor
    times: torch.Tensor
    tile_sequences: dict[int, torch.Tensor]
    rows_per_clip: list[int]
    repeated: bool
    time_order: torch.Tensor | None = None

    @classmethod
    def from_grid(
        cls, clip_grid: torch.Tensor, num_tiles: int, tile_repeat_order: str = "tile"
    ) -> "ClipLayout":
        """Rows in prompt order from `clip_grid (num_tiles, 3 or 4)`.

        An image's rows stand tile after tile with its repeats in a row ("tile", and "raster", which is an
        order of tokens), or all tiles, then again ("frame"); a video's stand time step after time step.

        Raises:
            ValueError: as `clips_of_grid`.
        """
        source, times, rows_per_clip = [], [], []
        tile_sequences: dict[int, list[torch.Tensor]] = {}
        num_rows = 0
        by_step = True  # whether each clip's rows stand time step after time step

        for first_tile, clip in clips_of_grid(clip_grid, num_tiles):
            tile, step, rows = _rows_of_clip(clip, tile_repeat_order)
            num_steps = clip.frames * clip.repeats

            # counted within the clip so far: shifted by the tiles and rows of the clips before
            source.append(first_tile + tile)
            times.append(step.float() / max(num_steps - 1, 1))
            tile_sequences.setdefault(num_steps, []).append(num_rows + rows)
            rows_per_clip.append(len(tile))
            num_rows += len(tile)
            by_step = by_step and (clip.frames > 1 or clip.tiles == 1 or tile_repeat_order == "frame")

        sequences = {num_steps: torch.cat(parts) for num_steps, parts in tile_sequences.items()}
        time_order = torch.cat([rows.T.flatten() for rows in sequences.values()])  # (R,)
        # told from the clips: torch.export has no values of tensors
        is_ordered = list(sequences) == [1] or (by_step and len(sequences) == len(rows_per_clip))

        return cls(
            source=torch.cat(source),
            times=torch.cat(times),
            tile_sequences=sequences,
            rows_per_clip=rows_per_clip,
            repeated=num_rows > num_tiles,
            time_order=None if is_ordered else time_order,
        )

    def by_time_step(self) -> "ClipLayout":
        """The same rows in another order: of each `T` those of the first time step, of the second, ….

        Each of `tile_sequences` is then a stride through the rows, and temporal attention copies nothing.
        """
        if self.time_order is None:
            return self

        tile_sequences = {}
        start = 0
        for num_steps, rows in self.tile_sequences.items():
            ordered = torch.arange(start, start + rows.numel(), device=rows.device)
            tile_sequences[num_steps] = ordered.view(num_steps, -1).T  # (sequences, T)
            start += rows.numel()

        return ClipLayout(
            source=self.source[self.time_order],
            times=self.times[self.time_order],
            tile_sequences=tile_sequences,
            rows_per_clip=self.rows_per_clip,
            repeated=self.repeated,
        )

    def in_prompt_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows `(R, …)` that `by_time_step` has ordered, in the order of this layout."""
        return rows if self.time_order is None else rows.index_select(0, self.time_order.argsort())

    def to(self, device: torch.device) -> "ClipLayout":
        """The same layout with its tensors on `device`."""
        return ClipLayout(
            source=self.source.to(device),
            times=self.times.to(device),
            tile_sequences={num_steps: rows.to(device) for num_steps, rows in self.tile_sequences.items()},
            rows_per_clip=self.rows_per_clip,
            repeated=self.repeated,
            time_order=None if self.time_order is None else self.time_order.to(device),
        )


# so that it may be an input of what torch.export and torch.compile make of the ViT
torch.export.register_dataclass(ClipLayout)


def _rows_of_clip(clip: Clip, tile_repeat_order: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tile and time step of each row of one clip, `(R,)` both, and its tile sequences `(tiles, T)`."""
    frames, tiles, repeats, _ = clip
    num_steps = frames * repeats

    tile = torch.arange(frames * tiles).view(frames, tiles)
    tile = repeat(tile, "f p -> (f r) p", r=repeats)  # (T, tiles)
    step = repeat(torch.arange(num_steps), "t -> t p", p=tiles)  # (T, tiles)

    # tile after tile, each with its repeats
    if frames == 1 and tile_repeat_order != "frame":
        tile_sequences = torch.arange(num_steps * tiles).view(tiles, num_steps)
        return tile.T.flatten(), step.T.flatten(), tile_sequences

    # time step after time step
    tile_sequences = torch.arange(num_steps * tiles).view(num_steps, tiles).T
    return tile.flatten(), step.flatten(), tile_sequences


# ---- arguments of the released chat


def released_clips(
    num_tiles: int,
    *,
    image_repeats: int,
    video_repeats: int,
    num_patches_list=None,
    split_sizes=None,
    data_flag=None,
) -> list[Clip]:
    """What the `num_tiles` tiles of a released `chat` call are, clip after clip in prompt order.

    Args:
        num_patches_list: tiles of each image, or of each frame of a video; None: all tiles are one image.
        data_flag: for each media group 1 (one image), 2 (several images) or 3 (a video); None: images.
        split_sizes: tiles of each media group; needed only where the groups' borders do not follow from the
            other two.

    Raises:
        ValueError: where the arguments contradict each other, with the numbers that do not fit.
    """
    patches = [num_tiles] if num_patches_list is None else integers("num_patches_list", num_patches_list)
    if patches and min(patches) < 1:
        raise ValueError(f"num_patches_list {patches} has {min(patches)}: expected at least 1 tile each")
    if sum(patches) != num_tiles:
        raise ValueError(
            f"num_patches_list {patches} sums to {sum(patches)}, but pixel_values has {num_tiles} tiles"
        )

    # what the groups are
    flags = [SEVERAL_IMAGES] if data_flag is None else integers("data_flag", data_flag)
    if VIDEO in flags and num_patches_list is None:
        raise ValueError(
            "data_flag 3 (video) needs num_patches_list: the tiles of each frame, as load_video returns them"
        )

    # each group becomes one clip or several
    clips = []
    for flag, group in zip(flags, _group_patches(patches, flags, split_sizes)):
        clips += _clips_of_group(flag, group, video_repeats if flag == VIDEO else image_repeats)
    return clips


def _clips_of_group(flag: int, group: list[int], repeats: int) -> list[Clip]:
    """The clips of a media group, whose images or frames have the tiles in `group`."""
    if flag == VIDEO:
        if len(set(group)) != 1:
            raise ValueError(
                f"the frames of a video need equal numbers of tiles, but num_patches_list gives {group}"
            )
        return [Clip(len(group), group[0], repeats)]

    # an image is a clip of its own
    if flag == SEVERAL_IMAGES or (flag == ONE_IMAGE and len(group) == 1):
        return [Clip(1, tiles, repeats) for tiles in group]

    if flag == ONE_IMAGE:
        raise ValueError(
            f"data_flag 1 is one image, but num_patches_list gives {len(group)}: {group}; use 2 or 3"
        )
    raise ValueError(f"data_flag has {flag}: expected 1 (one image), 2 (several images) or 3 (a video)")


def _group_patches(patches: list[int], flags: list[int], split_sizes) -> list[list[int]]:
    """Splits `num_patches_list` into one list a media group."""
    if split_sizes is not None:
        return _group_by_size(patches, flags, integers("split_sizes", split_sizes))

    # only one group may have any number of entries: the others have one each
    open_groups = [i for i, flag in enumerate(flags) if flag != ONE_IMAGE]
    if len(open_groups) > 1:
        raise ValueError(
            f"data_flag {flags} has several groups of unknown length: pass split_sizes, the tiles of each"
        )
    if not open_groups and len(flags) == 1:
        return [patches]  # a single image: the caller judges the length

    # what the groups of one entry leave over
    spare = len(patches) - (len(flags) - len(open_groups))
    if spare < len(open_groups) or (spare and not open_groups):
        raise ValueError(
            f"data_flag {flags} does not fit the {len(patches)} entries of num_patches_list {patches}"
        )

    entries = iter(patches)
    return [[next(entries) for _ in range(1 if flag == ONE_IMAGE else spare)] for flag in flags]


def _group_by_size(patches: list[int], flags: list[int], sizes: list[int]) -> list[list[int]]:
    if len(sizes) != len(flags):
        raise ValueError(
            f"split_sizes has {len(sizes)} entries, data_flag {len(flags)}: expected one each a group"
        )

    # entries are taken until a group has its tiles
    groups, entries = [], list(patches)
    for size in sizes:
        group: list[int] = []
        while entries and sum(group) < size:
            group.append(entries.pop(0))
        if sum(group) != size or not group:
            raise ValueError(
                f"split_sizes {sizes} does not fall on the borders of num_patches_list {patches}"
            )
        groups.append(group)

    if entries:
        raise ValueError(
            f"split_sizes {sizes} sums to {sum(sizes)}, num_patches_list {patches} to {sum(patches)}"
        )
    return groups


def integers(name: str, values) -> list[int]:
    """A list of ints from a list or a tensor; a ValueError that says `name` for anything else."""
    try:
        return [index(value) for value in (values.tolist() if hasattr(values, "tolist") else values)]
    except TypeError as error:
        raise ValueError(f"{name} is {values!r}: expected a list of whole numbers") from error
