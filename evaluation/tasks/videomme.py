"""Video-MME: 900 videos of three lengths, three questions each, with or without subtitles."""

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

from pvc.evaluation import choices
from pvc.evaluation.choices import Prompt
from pvc.evaluation.data_files import build_records, find_files, read_rows, video_finder
from pvc.evaluation.parse import read_letter
from pvc.evaluation.prompts import ANSWER_LETTER, frame_lines
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.subtitles import (
    Subtitle,
    lines_at_times,
    lmms_lines,
    read_srt,
    vlmevalkit_lines,
)
from pvc.evaluation.task import Metric, Protocol, Row, Settings, SubmissionFile, Task

FIELDS = ("duration", "domain", "sub_category", "task_type")
LISTED = "This video's subtitles are listed below:"
SELECT = (
    "Select the best answer to the following multiple-choice question based on the video{source}. "
    "Respond with only the letter (A, B, C, or D) of the correct option.\n"
)


def read(data: Path) -> list[Record]:
    """The questions without their subtitles.

    `videomme/test-*.parquet`, `data/` or `video/` with `<videoID>.mp4`.
    """
    return _read(data, with_subtitles=False)


def read_with_subtitles(data: Path) -> list[Record]:
    """The same with the lines of `subtitle/<videoID>.srt`, which not every video has."""
    return _read(data, with_subtitles=True)


def _read(data: Path, with_subtitles: bool) -> list[Record]:
    names = ("Video-MME", "videomme", "video-mme", "VideoMME")
    folder, tables = find_files(data, names, ("videomme/test-*.parquet", "test-*.parquet", "*.jsonl"))
    find_video = video_finder([folder / "data", folder / "video", folder / "videos"])
    subtitles_of = _subtitle_finder(folder) if with_subtitles else None

    def build(row: Mapping) -> Record:
        lines = tuple(row["options"])
        meta = {name: row[name] for name in FIELDS}
        meta |= {"option_lines": lines, "video_id": row["video_id"]}
        if subtitles_of is not None:
            meta["subtitles"] = subtitles_of(row["videoID"])
        return Record(
            id=row["question_id"],
            media=(Media("video", find_video(row["videoID"])),),
            question=row["question"],
            options=tuple(choices.without_letter(line) for line in lines),
            answer=row["answer"],
            meta=meta,
            group=row["videoID"],
        )

    rows = [row for table in tables for row in read_rows(table)]
    records = build_records(tables[0], rows, build)
    if with_subtitles and not any(record.meta["subtitles"] for record in records):
        raise DataError(f"no video has subtitles: expected <videoID>.srt in {folder / 'subtitle'}")
    return records


def _subtitle_finder(folder: Path) -> Callable[[str], tuple[Subtitle, ...]]:
    """Video -> its lines, read once; none where it has no file."""
    places = [folder / "subtitle", folder / "subtitles"]

    @cache
    def subtitles_of(video: str) -> tuple[Subtitle, ...]:
        paths = [place / f"{video}.srt" for place in places]
        return next((read_srt(path) for path in paths if path.exists()), ())

    return subtitles_of


def question_of(record: Record) -> str:
    """The question and its options, as they stand in the table."""
    return "\n".join((record.question, *record.meta["option_lines"]))


def prompt(record: Record, shown: Sequence[Shown]) -> str:
    """The benchmark's own, after the frames: with the lines that are shown at the frames' times."""
    lines = lines_at_times(record.meta.get("subtitles", ()), shown[0].times_s)
    listed = "\n".join((LISTED, *lines, "")) if lines else ""
    select = SELECT.format(source="")
    ask = f"{select}{question_of(record)}\nThe best answer is:"
    return frame_lines(shown[0].frames) + listed + ask


def dynamic_vlm_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """Dynamic-VLM's; where subtitles stand is not published: they are listed before the question."""
    lines = lines_at_times(record.meta.get("subtitles", ()), shown[0].times_s)
    listed = "\n".join((LISTED, *lines, "")) if lines else ""
    return choices.dynamic_vlm_prompt(listed + question_of(record), shown[0].frames)


def lmms_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's, which speaks of subtitles where there are none."""
    select = SELECT.format(source=" and the subtitles")
    return f"{select}{question_of(record)}\n\n{ANSWER_LETTER}"


def lmms_prompt_with_subtitles(record: Record, shown: Sequence[Shown]) -> str:
    """lmms-eval's with subtitles."""
    subtitles = record.meta["subtitles"]
    lines = "No subtitles available"
    if subtitles:
        lines = "\n".join(lmms_lines(subtitles, shown[0].indices, shown[0].fps or 1))
    select = SELECT.format(source=" and the subtitles")
    return f"{LISTED} \n{lines}\n{select}{question_of(record)}\nThe best answer is:"


def vlmevalkit_prompt(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's for InternVL."""
    return _vlmevalkit(record, shown, "\nThese are the frames of a video. ")


def vlmevalkit_prompt_with_subtitles(record: Record, shown: Sequence[Shown]) -> str:
    """VLMEvalKit's with subtitles."""
    lines = vlmevalkit_lines(record.meta["subtitles"], shown[0].indices, shown[0].fps or 1)
    listed = "\n".join(lines)
    return _vlmevalkit(record, shown, f"\nThese are the frames of a video. {LISTED}\n{listed}\n")


def _vlmevalkit(record: Record, shown: Sequence[Shown], before: str) -> str:
    select = before + SELECT.format(source="")
    ask = f"Question: {question_of(record)} \n{ANSWER_LETTER}"
    return choices.vlmevalkit_text(shown[0].frames, "", select, ask)


def official_accuracy(rows: Sequence[Row]) -> float:
    """As the official scorer has it: answers without a readable letter are left out of it."""
    read = [(row, read_letter(row.answer, row.record.options, "videomme")) for row in rows if row.answer]
    right = [found == row.record.answer for row, found in read if found]
    return 100 * sum(right) / max(1, len(right))


def others(rows: Sequence[Row]) -> dict[str, float]:
    """Figures beside the accuracy."""
    return {"official_accuracy": official_accuracy(rows)}


METRIC = Metric(labels=choices.labels_of(*FIELDS), others=others)


def submission(rows: Sequence[Row]) -> list[SubmissionFile]:
    """The official JSON: a list of videos with their questions and the whole answers."""
    choices.check_submitted(rows, [row.record.id for row in rows])

    videos: dict[str, dict] = {}
    for row in rows:
        meta = row.record.meta
        video = {name: meta[name] for name in ("video_id", "duration", "domain", "sub_category")}
        entry = videos.setdefault(meta["video_id"], {**video, "questions": []})
        entry["questions"].append(
            {
                "question_id": row.record.id,
                "task_type": meta["task_type"],
                "question": row.record.question,
                "options": list(meta["option_lines"]),
                "answer": row.record.answer,
                "response": row.answer or "",
            }
        )
    return [SubmissionFile("videomme.json", list(videos.values()))]


def _protocols(lmms: Prompt, vlmevalkit: Prompt) -> dict[str, Protocol]:
    def protocol(text: Prompt, parser: str, settings: Settings = choices.SETTINGS) -> Protocol:
        return Protocol(text, choices.read_as(parser), choices.is_answer, settings, METRIC)

    return {
        "default": protocol(prompt, "default"),
        "official": protocol(prompt, "videomme"),
        "lmms": protocol(lmms, "lmms_mcq", choices.LMMS_SETTINGS),
        "vlmevalkit": protocol(vlmevalkit, "vlmevalkit_videomme", choices.VLMEVALKIT_SETTINGS),
        "dynamic-vlm": choices.dynamic_vlm(dynamic_vlm_prompt, METRIC),
    }


ALL = (
    Task(
        name="videomme",
        about="Video-MME without subtitles: test-*.parquet and data/ or video/ of the Hub's Video-MME",
        read=read,
        protocols=_protocols(lmms_prompt, vlmevalkit_prompt),
        expected=2700,
        paper={"PVC-2B": 54.5, "PVC-8B": 64.1, "Dynamic-VLM-7B": 60.9, "Dynamic-VLM-14B": 64.6},
        submission=submission,
    ),
    Task(
        name="videomme-subs",
        about="Video-MME with subtitles: the same and subtitle/<videoID>.srt",
        read=read_with_subtitles,
        protocols=_protocols(lmms_prompt_with_subtitles, vlmevalkit_prompt_with_subtitles),
        expected=2700,
        paper={"PVC-2B": 56.7, "PVC-8B": 69.7, "Dynamic-VLM-7B": 64.0, "Dynamic-VLM-14B": 68.8},
        submission=submission,
    ),
)
