"""What a loop would do with a task, in a few lines: prompts, tiles and rows, without a model."""

import io
import json
from pathlib import Path

from builders import golden
from PIL import Image

from pvc.evaluation.records import Shown
from pvc.evaluation.task import ImagePlan
from pvc.evaluation.tasks import find_task
from pvc.preprocess import dynamic_preprocess

CHAT_LISTS = ("num_patches_list", "split_sizes", "data_flag")


def golden_run(name):
    """What a released script did, from `internvl_end_to_end`."""
    path = golden("evaluation/internvl_end_to_end.json")
    return json.loads(path.read_text(encoding="utf-8"))[name]


def write_lines(path, lines):
    """A file of JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def write_image(path, tiles=4):
    """An image that is cut into so many tiles, its thumbnail among them."""
    width = 100 * max(1, tiles - 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, 100), (30, 60, 90)).save(path, format="PNG")


def tiles_of(record, settings, tile_size=448):
    """The number of tiles of each of a record's images."""
    counts = []
    for position, media in enumerate(record.media):
        plan = ImagePlan(settings.max_tiles)
        if settings.plan_image is not None:
            plan = settings.plan_image(position, len(record.media))

        source = media.source if isinstance(media.source, Path) else io.BytesIO(media.source.read())
        with Image.open(source) as image:
            size = (image.width * plan.enlarge, image.height * plan.enlarge)
            cut = dynamic_preprocess(image.convert("RGB").resize(size), 1, plan.max_tiles, tile_size, True)
        counts.append(len(cut))
    return counts


def call_of(protocol, record, shown=None):
    """What `chat` is given for a record with one image or one video, as the golden data lists it."""
    settings = protocol.settings
    if shown is None:
        shown = [Shown() for _ in record.media]
        tiles = sum(tiles_of(record, settings))
        lists = {"num_patches_list": [tiles], "split_sizes": [tiles], "data_flag": [1]}
    else:
        tiles = sum(part.frames for part in shown)
        lists = {"num_patches_list": [1] * tiles, "split_sizes": [tiles], "data_flag": [3]}

    call = {"question": protocol.prompt(record, shown), "tiles": tiles}
    for name in CHAT_LISTS:
        call[name] = lists[name] if name in settings.chat_lists else None
    return {**call, "generation": dict(settings.generation)}


def default_protocol(name):
    """(task, its first protocol's name, that protocol)."""
    task = find_task(name)
    protocol = next(iter(task.protocols))
    return task, protocol, task.protocols[protocol]


def sub_scores(metric, rows):
    """{(kind, name): value} as a report counts them."""
    parts = {}
    for row in rows:
        for kind, names in metric.labels(row.record).items():
            for name in [names] if isinstance(names, str) else names:
                parts.setdefault((kind, name), []).append(row)
    return {part: metric.sub_score(found) for part, found in parts.items()}
