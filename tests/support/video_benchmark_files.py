"""Small data sets in the layouts of video and several-image benchmarks, from samples of one form.

A sample is a dict: video (a name without suffix) or images (paths), question, options (texts) and answer (a
letter, or a text where there are no options). `source` is the file that is copied; without it an empty file
stands in, for tests that read no media.
"""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq


def lettered(options):
    return [f"{letter}. {text}" for letter, text in zip("ABCDEFGH", options)]


def index_of(answer):
    return "ABCDEFGH".index(answer)


def put_media(sample, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    if sample.get("source") is not None:
        shutil.copyfile(sample["source"], path)
    elif not path.exists():
        path.write_bytes(b"")


def put_videos(folder, samples, suffix=".mp4", prefix=""):
    for sample in samples:
        put_media(sample, folder / f"{prefix}{sample['video']}{suffix}")


def write_json(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)


def srt_time(seconds):
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02}:{whole // 60 % 60:02}:{whole % 60:02},{milliseconds:03}"


def write_srt(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    blocks = [
        f"{number}\n{srt_time(start)} --> {srt_time(end)}\n{text}\n"
        for number, (start, end, text) in enumerate(lines, 1)
    ]
    path.write_text("\n".join(blocks), encoding="utf-8")


def write_videomme(folder, samples, videos="data", subtitles=None):
    """`subtitles`: video -> lines (start, end, text)."""
    names = list(dict.fromkeys(sample["video"] for sample in samples))
    asked = dict.fromkeys(names, 0)
    rows = []
    for sample in samples:
        number = names.index(sample["video"]) + 1
        asked[sample["video"]] += 1
        rows.append(
            {
                "video_id": f"{number:03}",
                "duration": ("short", "medium", "long")[number % 3],
                "domain": "Knowledge",
                "sub_category": "Law",
                "videoID": sample["video"],
                "question_id": f"{number:03}-{asked[sample['video']]}",
                "task_type": "Counting Problem",
                "question": sample["question"],
                "options": lettered(sample["options"]),
                "answer": sample["answer"],
            }
        )
    root = folder / "Video-MME"
    write_parquet(root / "videomme" / "test-00000-of-00001.parquet", rows)
    put_videos(root / videos, samples)
    for video, lines in (subtitles or {}).items():
        write_srt(root / "subtitle" / f"{video}.srt", lines)
    return folder
