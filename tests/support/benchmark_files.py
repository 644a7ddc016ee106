"""Small data sets in the layouts of the released tasks, from samples of one form.

    write_benchmark("mme", root, samples)     root: the folder that stands for `data/`

A sample's media is a PIL image, or the path of an image, a video or a folder of frames. `answer` is the text
of the right option where there are options; yes or no for MME; a short text otherwise. Readers find
everything under `root` alone, and no file that they need is left out.
"""

import base64
import io
import json
import shutil
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pvc.evaluation.prompts import ANSWER_LETTER, lettered
from pvc.evaluation.tasks.mme import TASK_NAMES
from pvc.evaluation.tasks.mmmu import SUBJECTS
from pvc.evaluation.tasks.mvbench import SOURCES, file_of


@dataclass
class Sample:
    """A question about an image or a video.

    Attributes:
        kind: the task within the benchmark that it belongs to ("existence" of MME, "Action Count" of MVBench,
            "human" of ChartQA, a subject of MMMU, a type of OCRBench); "": the writer deals them out in turn.
        bound: (start, end) in seconds, of MVBench.
    """

    media: Image.Image | Path
    question: str
    answer: str
    options: tuple[str, ...] = ()
    kind: str = ""
    bound: tuple[float, float] = (0.0, 1000.0)

    @property
    def letter(self) -> str:
        """Of the right option."""
        return ascii_uppercase[self.options.index(self.answer)]

    @property
    def choice_text(self) -> str:
        """Question, options and the sentence that asks for a letter."""
        return "\n".join([self.question, lettered(self.options), ANSWER_LETTER])


def image_bytes(media) -> bytes:
    """The image as the bytes of a PNG, or of its own file."""
    if isinstance(media, Path):
        return media.read_bytes()
    content = io.BytesIO()
    media.save(content, format="PNG")
    return content.getvalue()


def put_media(media, path: Path) -> None:
    """A copy of the image, video or folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not isinstance(media, Path):
        path.write_bytes(image_bytes(media))
    elif media.is_dir():
        shutil.copytree(media, path, dirs_exist_ok=True)
    else:
        shutil.copyfile(media, path)


def put_json(path: Path, value) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def put_lines(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")


def by_kind(samples, kinds) -> dict[str, list]:
    """Samples by kind. Those without one are dealt out in turn."""
    found = defaultdict(list)
    for number, sample in enumerate(samples):
        found[sample.kind or kinds[number % len(kinds)]].append(sample)
    return {kind: found[kind] for kind in kinds}


def _lines(root: Path, images: str, samples, suffix=".png"):
    """The lines of a jsonl file, and their images under `images`."""
    lines = []
    for number, sample in enumerate(samples):
        put_media(sample.media, root / images / f"{number}{suffix}")
        line = {
            "image": f"data/{images}/{number}{suffix}",
            "question": sample.choice_text if sample.options else sample.question,
            "question_id": number,
            "answer": sample.letter if sample.options else sample.answer,
        }
        lines.append(line)
    return lines


def write_ai2d(root, samples):
    lines = _lines(root, "ai2diagram/AI2D_TEST", samples)
    put_lines(root / "ai2diagram/test_vlmevalkit.jsonl", lines)


def write_chartqa(root, samples):
    for kind, found in by_kind(samples, ("human", "augmented")).items():
        lines = _lines(root, f"chartqa/ChartQA Dataset/test/png/{kind}", found)
        put_lines(root / f"chartqa/test_{kind}.jsonl", lines)


def _without_answers(lines):
    return [{name: value for name, value in line.items() if name != "answer"} for line in lines]


def write_docvqa_val(root, samples):
    lines = _lines(root, "docvqa/val/documents", samples)
    put_lines(root / "docvqa/val.jsonl", lines)
    entries = [{"questionId": line["question_id"], "answers": [line["answer"]]} for line in lines]
    put_json(root / "docvqa/val/val_v1.0.json", {"data": entries})


def write_docvqa_test(root, samples):
    lines = _lines(root, "docvqa/test/documents", samples)
    put_lines(root / "docvqa/test.jsonl", _without_answers(lines))


def write_infovqa_val(root, samples):
    lines = _lines(root, "infographicsvqa/infographicsvqa_images", samples, ".jpeg")
    put_lines(root / "infographicsvqa/val.jsonl", lines)
    entries = [
        {
            "questionId": line["question_id"],
            "answers": [line["answer"]],
            "answer_type": ["image span"],
            "evidence": ["textual"],
            "operation/reasoning": [],
        }
        for line in lines
    ]
    put_json(root / "infographicsvqa/infographicsVQA_val_v1.0_withQT.json", {"data": entries})


def write_infovqa_test(root, samples):
    lines = _lines(root, "infographicsvqa/infographicsvqa_images", samples, ".jpeg")
    put_lines(root / "infographicsvqa/test.jsonl", [{**line, "answer": ""} for line in lines])


def write_textvqa(root, samples):
    lines = _lines(root, "textvqa/train_images", samples, ".jpg")
    put_lines(root / "textvqa/textvqa_val.jsonl", lines)
    entries = [
        {"question_id": line["question_id"], "answers": [{"answer": line["answer"]}] * 10} for line in lines
    ]
    put_json(root / "textvqa/textvqa_val_annotations.json", {"annotations": entries})


def write_scienceqa(root, samples):
    lines = []
    for number, sample in enumerate(samples):
        image = f"scienceqa/images/test/{number}/image.png"
        put_media(sample.media, root / image)
        line = {
            "image": f"data/{image}",
            "question": sample.question,
            "choices": list(sample.options),
            "answer": sample.options.index(sample.answer),
            "hint": "",
        }
        lines.append(line)
    put_lines(root / "scienceqa/scienceqa_test_img.jsonl", lines)


def write_seed(root, samples):
    types = {"Scene Understanding": 1, "Instance Counting": 5}
    lines, entries = [], []
    for number, sample in enumerate(samples):
        put_media(sample.media, root / f"SEED/SEED-Bench-image/{number}")
        image = f"SEED-Bench-image/{number}"
        lines.append(
            {"question_id": number, "image": image, "text": sample.choice_text, "answer": sample.letter}
        )
        kind = list(types.values())[number % 2]
        entries.append({"question_id": number, "question_type_id": kind, "answer": sample.letter})
    put_lines(root / "SEED/seed.jsonl", lines)
    put_json(root / "SEED/SEED-Bench.json", {"question_type": types, "questions": entries})


MMBENCH_COLUMNS = (
    "index",
    "question",
    "hint",
    *"ABCD",
    "answer",
    "category",
    "image",
    "source",
    "l2-category",
    "comment",
    "split",
)


def write_mmbench(root, samples, file="mmbench_dev_20230712.tsv", *, with_answers=True):
    """Each question once for each rotation of its options."""
    columns = [name for name in MMBENCH_COLUMNS if with_answers or name != "answer"]
    lines = []
    for number, sample in enumerate(samples):
        image = base64.b64encode(image_bytes(sample.media)).decode()
        for turn in range(len(sample.options)):
            options = sample.options[-turn:] + sample.options[:-turn] if turn else sample.options
            row = dict.fromkeys(columns, "")
            row |= dict(zip("ABCD", options))
            row |= {"index": number + turn * 1_000_000, "question": sample.question, "image": image}
            row |= {"category": "counting", "l2-category": "perception", "split": "dev"}
            if with_answers:
                row["answer"] = ascii_uppercase[options.index(sample.answer)]
            lines.append("\t".join(str(row[name]) for name in columns))

    path = root / "mmbench" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["\t".join(columns), *lines]) + "\n", encoding="utf-8")


def write_mme(root, samples):
    """Question files as InternVL has them. Each task is given samples in pairs about one image."""
    pairs = [samples[start : start + 2] for start in range(0, len(samples), 2)]
    folder = root / "mme"
    for number, task in enumerate(TASK_NAMES):
        mine = [pair for place, pair in enumerate(pairs) if place % len(TASK_NAMES) == number]
        lines = []
        for place, pair in enumerate(mine):
            put_media(pair[0].media, folder / "MME_Benchmark_release_version" / task / f"{place}.png")
            lines += [f"{place}.png\t{sample.question}\t{sample.answer.capitalize()}\n" for sample in pair]
        path = folder / "Your_Results" / f"{task}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(lines), encoding="utf-8")


def write_mme_release(root, samples):
    """The folders of the original release: text files beside the images, or in a folder of their own."""
    pairs = [samples[start : start + 2] for start in range(0, len(samples), 2)]
    apart = {"artwork", "celebrity", "landmark", "posters", "scene"}
    for number, pair in enumerate(pairs):
        task = TASK_NAMES[number % len(TASK_NAMES)]
        folder = root / "mme/MME_Benchmark_release_version" / task
        text = folder / "questions_answers_YN" if task in apart else folder
        text.mkdir(parents=True, exist_ok=True)
        put_media(pair[0].media, (folder / "images" if task in apart else folder) / f"{number}.jpg")
        lines = [f"{sample.question}\t{sample.answer.capitalize()}\n" for sample in pair]
        (text / f"{number}.txt").write_text("".join(lines), encoding="utf-8")


def write_mmmu(root, samples):
    """Every subject has a file. A sample without options is an open question."""
    images = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    texts = ("id", "question", "options", "answer", "question_type")
    fields = [(name, pa.string()) for name in texts] + [(f"image_{place}", images) for place in range(1, 8)]
    for subject, found in by_kind(samples, SUBJECTS).items():
        rows = []
        for number, sample in enumerate(found, 1):
            row = dict.fromkeys(name for name, _ in fields)
            row["id"] = f"validation_{subject}_{number}"
            row["question"] = f"<image 1> {sample.question}"
            row["options"] = repr(list(sample.options))
            row["answer"] = sample.letter if sample.options else sample.answer
            row["question_type"] = "multiple-choice" if sample.options else "open"
            row["image_1"] = {"bytes": image_bytes(sample.media), "path": f"{number}.png"}
            rows.append(row)
        path = root / "MMMU" / subject / "validation-00000-of-00001.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), path)


def write_mvbench(root, samples):
    """Every task has a file. Folders of frames are for Episodic Reasoning alone."""
    frames = [sample for sample in samples if isinstance(sample.media, Path) and sample.media.is_dir()]
    videos = [sample for sample in samples if sample not in frames]
    tasks = by_kind(videos, [task for task in SOURCES if SOURCES[task].fps is None])
    tasks["Episodic Reasoning"] = frames

    for task, source in SOURCES.items():
        entries = []
        for number, sample in enumerate(tasks[task]):
            suffix = "" if sample.media.is_dir() else sample.media.suffix
            name = f"{file_of(task).removesuffix('.json')}_{number}{suffix}"
            put_media(sample.media, root / "MVBench/video" / source.folder / name)
            entry = {
                "video": name,
                "question": sample.question,
                "candidates": list(sample.options),
                "answer": sample.answer,
            }
            if source.is_bound:
                entry["start"], entry["end"] = sample.bound
            entries.append(entry)
        put_json(root / "MVBench/json" / file_of(task), entries)


OCRBENCH_TYPES = ("Regular Text Recognition", "Scene Text-centric VQA", "Doc-oriented VQA")


def write_ocrbench(root, samples):
    entries = []
    for number, sample in enumerate(samples):
        image = f"IIIT5K/{number}.png"
        put_media(sample.media, root / "OCRBench" / image)
        entry = {
            "dataset_name": "IIIT5K",
            "id": number,
            "image_path": image,
            "question": sample.question,
            "answers": sample.answer if number % 2 else [sample.answer],
            "type": sample.kind or OCRBENCH_TYPES[number % len(OCRBENCH_TYPES)],
        }
        entries.append(entry)
    put_json(root / "OCRBench/OCRBench.json", entries)


def _mmbench(file, *, with_answers=True):
    return lambda root, samples: write_mmbench(root, samples, file, with_answers=with_answers)


WRITERS = {
    "ai2d": write_ai2d,
    "chartqa": write_chartqa,
    "docvqa-val": write_docvqa_val,
    "docvqa-test": write_docvqa_test,
    "infovqa-val": write_infovqa_val,
    "infovqa-test": write_infovqa_test,
    "textvqa": write_textvqa,
    "scienceqa": write_scienceqa,
    "seed": write_seed,
    "mme": write_mme,
    "mmbench-dev-en": _mmbench("mmbench_dev_20230712.tsv"),
    "mmbench-test-en": _mmbench("mmbench_test_en_20231003.tsv", with_answers=False),
    "mmbench-dev-cn": _mmbench("mmbench_dev_cn_20231003.tsv"),
    "mmbench-test-cn": _mmbench("mmbench_test_cn_20231003.tsv", with_answers=False),
    "mmmu-val": write_mmmu,
    "mvbench": write_mvbench,
    "ocrbench": write_ocrbench,
}


def write_benchmark(name, root, samples):
    """The data set of a task under `root`."""
    WRITERS[name](root, samples)
