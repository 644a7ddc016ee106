"""Small data sets in the layouts of video and several-image benchmarks, from samples of one form.

A sample is a dict: video (a name without suffix) or images (paths), question, options (texts) and answer (a
letter, or a text where there are no options). `source` is the file that is copied; without it an empty file
stands in, for tests that read no media.
"""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from benchmark_files import put_json


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


def write_mlvu(folder, samples):
    """A sample has `task`, such as "3_ego"; its answer may be a text that is no candidate."""
    root = folder / "MVLU" / "MLVU"
    for task in dict.fromkeys(sample["task"] for sample in samples):
        chosen = [sample for sample in samples if sample["task"] == task]
        rows = [
            {
                "video": f"{sample['video']}.mp4",
                "duration": 8.0,
                "question": sample["question"],
                "candidates": sample["options"],
                "answer": text_of_answer(sample),
                "question_type": task[2:],
            }
            for sample in chosen
        ]
        put_json(root / "json" / f"{task}.json", rows)
        put_videos(root / "video" / task, chosen)
    return folder


def text_of_answer(sample):
    if len(sample["answer"]) > 1:
        return sample["answer"]
    return sample["options"][index_of(sample["answer"])]


def write_mlvu_generation(folder, samples):
    """A sample has `task` ("8_sub_scene" or "9_summary") and, for the first, `points`."""
    root = folder / "MVLU" / "MLVU"
    for task in dict.fromkeys(sample["task"] for sample in samples):
        chosen = [sample for sample in samples if sample["task"] == task]
        rows = [
            {
                "video": f"{sample['video']}.mp4",
                "duration": 8.0,
                "question": sample["question"],
                "answer": sample["answer"],
                "question_type": {"8_sub_scene": "subPlot", "9_summary": "summary"}[task],
            }
            | ({"scoring_points": sample["points"]} if "points" in sample else {})
            for sample in chosen
        ]
        put_json(root / "json" / f"{task}.json", rows)
        put_videos(root / "video" / task, chosen)
    return folder


def write_mlvu_test(folder, samples):
    rows = [
        {
            "question_id": f"q{number}",
            "video": f"{sample['video']}.mp4",
            "question": sample["question"],
            "candidates": sample["options"],
            "question_type": sample["task"][2:],
        }
        for number, sample in enumerate(samples)
    ]
    put_json(folder / "MLVU_Test" / "test_question.json", rows)
    put_videos(folder / "MLVU_Test" / "video", samples)
    return folder


def write_longvideobench(folder, samples, subtitles=None):
    """Validation and test part. `subtitles`: video -> lines (start, end, text)."""
    root = folder / "LongVideoBench"
    rows = [
        {
            "id": f"{sample['video']}_{number}",
            "video_id": sample["video"],
            "video_path": f"{sample['video']}.mp4",
            "subtitle_path": f"{sample['video']}_en.json",
            "question": sample["question"],
            "candidates": sample["options"],
            "correct_choice": index_of(sample["answer"]),
            "duration": 8.0,
            "duration_group": 15,
            "question_category": "S2E",
            "topic_category": "NP-News-Programs",
            "starting_timestamp_for_subtitles": 0,
        }
        for number, sample in enumerate(samples)
    ]
    put_json(root / "lvb_val.json", rows)
    put_json(root / "lvb_test_wo_gt.json", [{**row, "correct_choice": -1} for row in rows])
    put_videos(root / "videos", samples)
    for video, lines in (subtitles or {}).items():
        entries = [{"timestamp": [start, end], "text": text} for start, end, text in lines]
        put_json(root / "subtitles" / f"{video}_en.json", entries)
    return folder


def write_nextqa(folder, samples, mapped=True):
    root = folder / "nextqa"
    root.mkdir(parents=True, exist_ok=True)
    fields = [
        "video",
        "frame_count",
        "width",
        "height",
        "question",
        "answer",
        "qid",
        "type",
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
    ]
    with open(root / "test.csv", "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fields)
        writer.writeheader()
        for number, sample in enumerate(samples):
            row = {f"a{index}": option for index, option in enumerate(sample["options"])}
            row |= {"video": sample["video"], "frame_count": 16, "width": 64, "height": 64}
            row |= {"question": sample["question"], "answer": index_of(sample["answer"])}
            row |= {"qid": number, "type": ("CW", "TN", "DC")[number % 3]}
            writer.writerow(row)

    if mapped:
        videos = {sample["video"]: f"1101/{sample['video']}" for sample in samples}
        put_json(root / "map_vid_vidorID.json", videos)
        put_videos(root / "NExTVideo" / "1101", samples)
    else:
        put_videos(root / "videos", samples)
    return folder


def write_egoschema(folder, samples, answered=None, copy=False):
    """One question a video. The first `answered` ones (all by default) have a public answer."""
    root = folder / "EgoSchema"
    public = samples[:answered]
    if copy:
        rows = [
            {
                "question_idx": str(number),
                "question": sample["question"],
                "video_idx": sample["video"],
                "option": lettered(sample["options"]),
                "answer": str(index_of(sample["answer"])),
            }
            for number, sample in enumerate(samples)
        ]
        write_parquet(root / "MC" / "test-00000-of-00001.parquet", [{**row, "answer": None} for row in rows])
        write_parquet(root / "Subset" / "test-00000-of-00001.parquet", rows[: len(public)])
    else:
        rows = [
            {"q_uid": sample["video"], "question": sample["question"]}
            | {f"option {index}": option for index, option in enumerate(sample["options"])}
            for sample in samples
        ]
        put_json(root / "questions.json", rows)
        answers = {sample["video"]: index_of(sample["answer"]) for sample in public}
        put_json(root / "subset_answers.json", answers)
    put_videos(root / "videos", samples)
    return folder


def write_perceptiontest(folder, samples, original=False, part="val"):
    """The Hub's parquet table, or the original JSON keyed by video. `part`: "val" or "test"."""
    root = folder / "PerceptionTest"
    kinds = {"area": "physics", "reasoning": "predictive", "tag": ["motion", "object"]}
    videos: dict = {}
    for number, sample in enumerate(samples):
        question = {"id": number, "question": sample["question"], "options": sample["options"], **kinds}
        if part == "val":
            question["answer_id"] = index_of(sample["answer"])
        videos.setdefault(sample["video"], {"mc_question": []})["mc_question"].append(question)

    if original:
        put_json(root / f"mc_question_{part}.json", videos)
    else:
        rows = [
            {"video_name": video, "question_id": str(question.pop("id")), **question}
            for video, entry in videos.items()
            for question in entry["mc_question"]
        ]
        rows = [{**row, **{name: row[name].title() for name in ("area", "reasoning")}} for row in rows]
        write_parquet(root / f"mc_question_{part}" / "validation-00000-of-00001.parquet", rows)
    put_videos(root / "videos", samples)
    return folder


OPEN_ENDED_FOLDERS = {
    "activitynetqa": "ActivityNet-QA",
    "msvd-qa": "MSVD_Zero_Shot_QA",
    "msrvtt-qa": "MSRVTT_Zero_Shot_QA",
    "tgif-qa": "TGIF_Zero_Shot_QA",
}


def write_open_ended(folder, samples, task, suffix=".mp4"):
    """A sample's answer is a text; `type` (0 to 8) is written for ActivityNet-QA alone."""
    root = folder / OPEN_ENDED_FOLDERS[task]
    prefix = "v_" if task == "activitynetqa" else ""
    questions, answers = [], []
    for number, sample in enumerate(samples):
        name = f"{prefix}{sample['video']}_{number}"
        questions.append({"video_name": sample["video"], "question": sample["question"], "question_id": name})
        answer = {"answer": sample["answer"], "question_id": name}
        answers.append(answer | ({"type": sample.get("type", 3)} if task == "activitynetqa" else {}))

    put_json(root / "test_q.json", questions)
    put_json(root / "test_a.json", answers)
    put_videos(root / "videos", samples, suffix, prefix)
    return folder


def write_tempcompass(folder, samples, copy=False, fine_types=None):
    """All four tasks from the same samples, which may name an `aspect`. `copy`: the Hub's parquet tables."""
    root = folder / "TempCompass"
    asked: dict = {"multi-choice": [], "yes_no": [], "caption_matching": [], "captioning": []}
    for sample in samples:
        options = sample["options"]
        right = index_of(sample["answer"])
        captions = [f"Caption {letter}: {text}" for letter, text in zip("AB", options)]
        choice = "\n".join((sample["question"], *lettered(options)))
        pairs = {
            "multi-choice": (choice, lettered(options)[right]),
            "yes_no": (f"Is it true: {options[0]}?", "yes" if right == 0 else "no"),
            "caption_matching": (
                "\n".join(("Which caption matches the video better?", *captions)),
                captions[min(right, 1)],
            ),
            "captioning": ("Describe the video.", options[right]),
        }
        for task, (question, answer) in pairs.items():
            row = {"video_id": sample["video"], "dim": sample.get("aspect", "action")}
            row |= {"question": question, "answer": answer}
            if task == "captioning":
                row |= {"mc_question": pairs["multi-choice"][0], "mc_answer": pairs["multi-choice"][1]}
            asked[task].append(row)

    for task, rows in asked.items():
        if copy:
            write_parquet(root / task / "test-00000-of-00001.parquet", rows)
            continue
        nested: dict = {}
        for row in rows:
            questions = nested.setdefault(row["video_id"], {}).setdefault(row["dim"], [])
            questions.append({"question": row["question"], "answer": row["answer"]})
        put_json(root / "questions" / f"{task}.json", nested)

    if fine_types:
        put_json(root / "meta_info.json", {video: {"eval_dim": types} for video, types in fine_types.items()})
    put_videos(root / "videos", samples)
    return folder


def write_muirbench(folder, samples):
    rows = [
        {
            "idx": str(number),
            "task": "Counting",
            "image_relation": "Overall Similarity",
            "image_type": "Photograph",
            "question": sample["question"],
            "options": sample["options"],
            "answer": sample["answer"],
            "image_list": [{"bytes": Path(path).read_bytes(), "path": None} for path in sample["images"]],
            "counterpart_idx": str(number ^ 1),
        }
        for number, sample in enumerate(samples)
    ]
    write_parquet(folder / "MUIRBENCH" / "data" / "test-00000-of-00001.parquet", rows)
    return folder


def write_mmiu(folder, samples, nested=False):
    """The Hub's flat table, or InternVL's lines with nested input and output."""
    root = folder / "MMIU-Benchmark"
    rows = []
    for number, sample in enumerate(samples):
        task = sample.get("task", "point_tracking")
        paths = [f"./2D-spatial/{task}/{task}_{number}_{i}.jpg" for i in range(len(sample["images"]))]
        for path, image in zip(paths, sample["images"]):
            put_media({"source": image}, root / path)

        options = "\n".join(f"{letter}: {text}" for letter, text in zip("ABCDEFGH", sample["options"]))
        asked = {
            "input_image_path": paths,
            "question": sample["question"],
            "context": f"Your task is to answer.\nSelect from the following choices.\n{options}",
        }
        row = {"task": task, "source": "synthetic", "options": options}
        if nested:
            rows.append({**row, "input": asked, "output": {"output_text": sample["answer"]}})
        else:
            rows.append({**row, **asked, "output": sample["answer"]})

    if nested:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        (root / "mmiu.jsonl").write_text(lines, encoding="utf-8")
    else:
        write_parquet(root / "all.parquet", rows)
    return folder
