"""Small data for every task, in its own layout: `write(task, root)`.

The questions are about images and a video that come with the checkpoint. PVC-Tiny was not trained on them.
"""

from benchmark_files import WRITERS, Sample, write_benchmark
from video_benchmark_files import (
    write_egoschema,
    write_longvideobench,
    write_mlvu,
    write_mlvu_generation,
    write_mlvu_test,
    write_mmiu,
    write_muirbench,
    write_nextqa,
    write_open_ended,
    write_perceptiontest,
    write_tempcompass,
    write_videomme,
)

from pvc import CHECKPOINT

IMAGES = [CHECKPOINT / f"assets/picture{i}.png" for i in (1, 2)]
VIDEO = CHECKPOINT / "assets/video.mp4"
CHOICE = ("a red circle", "a green square", "a blue star", "nothing", "a yellow line")


def image_samples(task: str) -> list[Sample]:
    """Four questions about two images; about a video for MVBench."""
    media = [VIDEO] * 4 if task == "mvbench" else [IMAGES[i // 2] for i in range(4)]
    if task in ("ai2d", "scienceqa", "seed", "mmmu-val", "mvbench") or task.startswith("mmbench"):
        return [Sample(x, f"What is shown, {i}?", CHOICE[i], CHOICE[:4]) for i, x in enumerate(media)]
    if task == "mme":  # two questions for each of its 14 kinds
        media = [IMAGES[i // 14] for i in range(28)]
        return [Sample(x, f"Is there a circle, {i}?", ("Yes", "No")[i // 14]) for i, x in enumerate(media)]
    return [Sample(x, f"What is shown, {i}?", "a red circle") for i, x in enumerate(media)]


def video_samples(options: int = 4) -> list[dict]:
    """Three questions about one video and one about another."""
    return [
        {
            "video": f"clip{i // 3}",
            "source": VIDEO,
            "question": f"what is shown, {i}?",
            "options": list(CHOICE[:options]),
            "answer": "ABCD"[i % 3],
        }
        for i in range(4)
    ]


def one_a_video(options: int) -> list[dict]:
    return [sample | {"video": f"clip{i}"} for i, sample in enumerate(video_samples(options))]


def several_samples(marks: str = "") -> list[dict]:
    return [
        {
            "images": IMAGES,
            "question": f"{marks}What is shown, {i}?",
            "options": list(CHOICE[:4]),
            "answer": x,
        }
        for i, x in enumerate("ABC")
    ]


def with_task(name: str) -> list[dict]:
    return [sample | {"task": name} for sample in video_samples()]


def generation_samples() -> list[dict]:
    samples = [sample | {"answer": "a circle moves", "points": ["it moves"]} for sample in video_samples()]
    return [sample | {"task": task} for sample, task in zip(samples, ["8_sub_scene", "9_summary"] * 2)]


def open_samples() -> list[dict]:
    return [sample | {"answer": "yes"} for sample in video_samples()]


VIDEO_WRITERS = {
    "videomme": lambda root: write_videomme(root, video_samples()),
    "videomme-subs": lambda root: write_videomme(
        root,
        video_samples(),
        subtitles={"clip0": [(0.0, 9.0, '<font color="white" size=".72c">hello</font>')]},
    ),
    "mlvu-dev": lambda root: write_mlvu(root, with_task("3_ego")),
    "mlvu-test": lambda root: write_mlvu_test(root, with_task("3_ego")),
    "mlvu-gen": lambda root: write_mlvu_generation(root, generation_samples()),
    "longvideobench-val": lambda root: write_longvideobench(root, video_samples()),
    "nextqa-mc": lambda root: write_nextqa(root, video_samples(5)),
    "egoschema": lambda root: write_egoschema(root, one_a_video(5)),
    "egoschema-subset": lambda root: write_egoschema(root, one_a_video(5)),
    "perceptiontest-val": lambda root: write_perceptiontest(root, video_samples(3)),
    "perceptiontest-test": lambda root: write_perceptiontest(root, video_samples(3), part="test"),
    "activitynetqa": lambda root: write_open_ended(root, open_samples(), "activitynetqa"),
    "msvd-qa": lambda root: write_open_ended(root, open_samples(), "msvd-qa"),
    "msrvtt-qa": lambda root: write_open_ended(root, open_samples(), "msrvtt-qa"),
    "tgif-qa": lambda root: write_open_ended(root, open_samples(), "tgif-qa"),
    "tempcompass": lambda root: write_tempcompass(root, one_a_video(4)),
    "tempcompass-captioning": lambda root: write_tempcompass(root, one_a_video(4)),
    "muirbench": lambda root: write_muirbench(root, several_samples("<image><image> ")),
    "mmiu": lambda root: write_mmiu(root, several_samples()),
}
WRITTEN = (*WRITERS, *VIDEO_WRITERS)  # names of the tasks
WITHOUT_WRITER = {"longvideobench-test"}  # the layout of the validation part, under another name


def write(task: str, root) -> None:
    """The data of a task below `root`."""
    if task in WRITERS:
        write_benchmark(task, root, image_samples(task))
    else:
        VIDEO_WRITERS[task](root)
