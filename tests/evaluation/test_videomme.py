"""Video-MME: its files, prompts, subtitles, scores and submission, against what public code makes of them."""

import pytest
from benchmark_answers import answered, golden_evaluation, shown_frames
from video_benchmark_files import write_videomme

from pvc.evaluation.frames import VideoFacts, linspace_frames, vlmevalkit_frames
from pvc.evaluation.records import DataError, Media, Record, Shown
from pvc.evaluation.subtitles import lines_at_times, lmms_lines, read_srt, vlmevalkit_lines
from pvc.evaluation.task import Row, percent
from pvc.evaluation.tasks import videomme

GOLDEN = golden_evaluation("videomme")
PROMPTS = golden_evaluation("prompts")["videomme"]
TASK, TASK_SUBS = videomme.ALL


def record_of(entry):
    meta = {name: entry.get(name) for name in (*videomme.FIELDS, "video_id")}
    meta["option_lines"] = tuple(entry["options"])
    options = tuple(videomme.choices.without_letter(line) for line in entry["options"])
    answer = entry.get("answer")
    media = (Media("video", "v.mp4"),)
    return Record(entry.get("question_id", ""), media, entry["question"], options, answer, meta)


RECORDS = [record_of(entry) for entry in GOLDEN["records"]]
RESPONSES = [entry["response"] for entry in GOLDEN["records"]]


@pytest.mark.parametrize("case", PROMPTS, ids=lambda case: case["doc"]["question"][:12])
def test_prompts_are_those_of_public_code(case):
    record = record_of(case["doc"])
    one, two = shown_frames(1), shown_frames(2)

    assert TASK.protocols["lmms"].prompt(record, two) == case["lmms_default"]
    assert TASK.protocols["vlmevalkit"].prompt(record, one) == case["vlmevalkit_internvl_1_frames"]
    assert TASK.protocols["vlmevalkit"].prompt(record, two) == case["vlmevalkit_internvl_2_frames"]


def test_the_default_prompt_is_the_official_one_after_the_frames():
    record = record_of(PROMPTS[0]["doc"])

    text = TASK.protocols["default"].prompt(record, [Shown((0, 1), (0.0, 1.0))])

    assert text == (
        "Frame1: <image>\nFrame2: <image>\nSelect the best answer to the following multiple-choice question "
        "based on the video. Respond with only the letter (A, B, C, or D) of the correct option.\n"
        "What does the man put on the shelf?\nA. A red mug\nB. A pair of shoes\nC. The blue notebook\n"
        "D. Nothing at all\nThe best answer is:"
    )


@pytest.mark.parametrize("case", GOLDEN["subtitles"], ids=lambda case: f"{case['fps']} fps")
@pytest.mark.parametrize("frames", [4, 16, 64])
def test_lines_of_frames_are_those_of_public_code(case, frames, tmp_path):
    (tmp_path / "v.srt").write_text(case["srt"], encoding="utf-8")
    subtitles = read_srt(tmp_path / "v.srt")
    video = VideoFacts(case["total_frames"], case["fps"])
    expected = case["per_frames"][str(frames)]

    indices = vlmevalkit_frames(video, frames)
    lines = lmms_lines(subtitles, linspace_frames(video, frames), case["fps"])

    assert indices == expected["vlmevalkit_frame_indices"]
    assert vlmevalkit_lines(subtitles, indices, case["fps"]) == expected["vlmevalkit_lines"]
    assert sorted(lines) == [line for line in expected["lmms_lines_unordered"] if line]


def test_a_line_is_shown_once_and_only_at_the_times_of_frames(tmp_path):
    (tmp_path / "v.srt").write_text(GOLDEN["subtitles"][0]["srt"], encoding="utf-8")

    lines = lines_at_times(read_srt(tmp_path / "v.srt"), [4.0, 5.0, 9.0])

    assert lines == ['go café "yes" 1,200', "open"]


def test_each_answer_is_scored_as_by_lmms_eval():
    rows = answered(TASK.protocols["lmms"], RECORDS, RESPONSES)

    assert [row.parsed for row in rows] == GOLDEN["lmms_pred"]
    assert [row.score for row in rows] == GOLDEN["lmms_scores"]
    assert percent(rows) == GOLDEN["lmms_overall"]


def test_the_official_accuracy_leaves_unread_answers_out():
    rows = answered(TASK.protocols["default"], RECORDS, RESPONSES)
    printed = [line for line in GOLDEN["official_printed"] if line.startswith("Overall: ")]

    by_duration = [
        videomme.official_accuracy([row for row in rows if row.record.meta["duration"] == duration])
        for duration in ("short", "medium", "long")
    ]
    values = [*by_duration, TASK.protocols["default"].metric.others(rows)["official_accuracy"]]

    assert [f"Overall:  {value:.1f}%" for value in values] == printed


def test_sub_scores_are_vlmevalkits():
    metric = TASK.protocols["vlmevalkit"].metric
    rows = answered(TASK.protocols["vlmevalkit"], RECORDS, RESPONSES)
    rating = GOLDEN["vlmevalkit_rating"]

    assert f"{percent(rows) / 100:.3f}" == rating["overall"]["overall"]
    for kind in ("domain", "sub_category", "task_type"):
        for name, share in rating["overall"][kind].items():
            group = [row for row in rows if metric.labels(row.record)[kind] == name]
            assert f"{metric.sub_score(group) / 100:.3f}" == share


SAMPLES = [
    {"video": "abc", "question": "What?", "options": ["x", "y", "z", "w"], "answer": "B"},
    {"video": "abc", "question": "Who?", "options": ["k", "l", "m", "n"], "answer": "A"},
    {"video": "def", "question": "How?", "options": ["k", "l", "m", "n"], "answer": "D"},
]


@pytest.mark.parametrize("videos", ["data", "video"])
def test_the_table_and_both_names_of_the_video_folder_are_read(tmp_path, videos):
    write_videomme(tmp_path, SAMPLES, videos=videos)

    records = TASK.read(tmp_path)

    assert [(r.question, r.options, r.answer, r.group) for r in records] == [
        (s["question"], tuple(s["options"]), s["answer"], s["video"]) for s in SAMPLES
    ]
    assert records[0].media == records[1].media
    assert not any(record.media[0].is_missing() for record in records)


def test_subtitles_are_read_where_there_are_some(tmp_path):
    folder = write_videomme(tmp_path, SAMPLES, subtitles={"abc": [(0.5, 1.5, "hello")]})
    shown = [Shown((0, 1, 2), (0.0, 1.0, 2.0), fps=1.0)]

    first, _, third = TASK_SUBS.read(folder)

    prompt = TASK_SUBS.protocols["default"].prompt
    assert "This video's subtitles are listed below:\nhello\nSelect the best" in prompt(first, shown)
    assert "subtitles" not in prompt(third, shown)


def test_a_data_set_without_any_subtitles_is_refused(tmp_path):
    write_videomme(tmp_path, SAMPLES)

    with pytest.raises(DataError, match="no video has subtitles"):
        TASK_SUBS.read(tmp_path)


def test_the_submission_lists_videos_with_their_questions(tmp_path):
    write_videomme(tmp_path, SAMPLES)
    rows = [Row(record, "B", "B", 0.0) for record in TASK.read(tmp_path)]

    (file,) = TASK.submission(rows)

    assert [len(video["questions"]) for video in file.content] == [2, 1]
    assert file.content[0]["questions"][0] == {
        "question_id": "001-1",
        "task_type": "Counting Problem",
        "question": "What?",
        "options": ["A. x", "B. y", "C. z", "D. w"],
        "answer": "B",
        "response": "B",
    }


def test_a_submission_with_a_repeated_question_is_refused():
    row = Row(record_of({**GOLDEN["records"][0]}), "B", "B", 0.0)

    with pytest.raises(ValueError, match="occur twice"):
        TASK.submission([row, row])
