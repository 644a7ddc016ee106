"""Every task about videos or several images is run whole on a small data set in its own layout."""

import json
from pathlib import Path

import pytest
import video_benchmark_files as files
from media_files import write_video
from PIL import Image

from pvc.evaluation.engine import Answer
from pvc.evaluation.media import Tiling
from pvc.evaluation.run import COMPLETE, Options, dry_run, evaluate, units_of
from pvc.evaluation.tasks import TASKS

FRAMES = 4


class OneAnswer:
    """Answers the same to all questions."""

    identity = {"name": "one answer"}
    tiling = Tiling(28)
    reads_tiles = True

    def __init__(self, text="A"):
        self.text = text

    def answer(self, units, settings):
        for unit in units:
            for request in unit.requests:
                marks = request.question.count("<image>")
                parts = sum(len(indices) for indices in request.frame_indices)
                assert marks in (0, parts), "a placeholder for each frame or image, or none"
                yield Answer(request, self.text, None, 0.0, 1)


def samples(folder: Path, options=4, **more):
    """Three questions about two videos; the first and the last have the answer A."""
    source = folder / "source.mp4"
    write_video(source, frames=10)
    texts = ["ball", "box", "none", "up", "left"][:options]
    asked = [("v1", "what, then?", "A"), ("v1", "who is it?", "B"), ("v2", "how?", "A")]
    return [
        {"video": video, "question": question, "options": texts, "answer": answer, "source": source, **more}
        for video, question, answer in asked
    ]


def image_samples(folder: Path, marks="<image> <image> "):
    paths = []
    for index in range(2):
        paths.append(folder / f"{index}.png")
        Image.new("RGB", (40 + index, 20)).save(paths[-1])
    question = {"images": paths, "question": f"{marks}same?", "options": ["x", "y"]}
    return [{**question, "answer": answer} for answer in "ABA"]


def one_video_each(rows):
    return [{**row, "video": f"u-{number}"} for number, row in enumerate(rows)]


def texts_for_answers(rows):
    return [{**row, "answer": "ball" if row["answer"] == "A" else "no"} for row in rows]


SUBTITLES = {"v1": [(0.0, 0.5, '<font color="white" size=".72c">hello</font>')]}
WRITERS = {
    "videomme": lambda f: files.write_videomme(f, samples(f)),
    "videomme-subs": lambda f: files.write_videomme(f, samples(f), subtitles=SUBTITLES),
    "mlvu-dev": lambda f: files.write_mlvu(f, samples(f, task="3_ego")),
    "mlvu-test": lambda f: files.write_mlvu_test(f, samples(f, task="3_ego")),
    "mlvu-gen": lambda f: files.write_mlvu_generation(f, samples(f, task="9_summary")),
    "longvideobench-val": lambda f: files.write_longvideobench(f, samples(f, 5), subtitles=SUBTITLES),
    "longvideobench-test": lambda f: files.write_longvideobench(f, samples(f, 5)),
    "nextqa-mc": lambda f: files.write_nextqa(f, samples(f, 5)),
    "egoschema": lambda f: files.write_egoschema(f, one_video_each(samples(f, 5))),
    "egoschema-subset": lambda f: files.write_egoschema(f, one_video_each(samples(f, 5))),
    "perceptiontest-val": lambda f: files.write_perceptiontest(f, samples(f, 3)),
    "perceptiontest-test": lambda f: files.write_perceptiontest(f, samples(f, 3), part="test"),
    "activitynetqa": lambda f: files.write_open_ended(f, texts_for_answers(samples(f)), "activitynetqa"),
    "msvd-qa": lambda f: files.write_open_ended(f, texts_for_answers(samples(f)), "msvd-qa"),
    "msrvtt-qa": lambda f: files.write_open_ended(f, texts_for_answers(samples(f)), "msrvtt-qa"),
    "tgif-qa": lambda f: files.write_open_ended(f, texts_for_answers(samples(f)), "tgif-qa"),
    "tempcompass": lambda f: files.write_tempcompass(f, samples(f, 2)),
    "tempcompass-captioning": lambda f: files.write_tempcompass(f, samples(f, 2)),
    "muirbench": lambda f: files.write_muirbench(f, image_samples(f)),
    "mmiu": lambda f: files.write_mmiu(f, image_samples(f, marks="")),
}
PROTOCOLS = [(name, protocol) for name in WRITERS for protocol in TASKS[name].protocols]


@pytest.mark.parametrize("name, protocol", PROTOCOLS, ids=lambda value: value)
def test_a_task_runs_whole_under_each_protocol(name, protocol, tmp_path):
    data = WRITERS[name](tmp_path)
    task = TASKS[name]

    outcome = evaluate(
        OneAnswer("ball" if name in files.OPEN_ENDED_FOLDERS else "A"),
        name,
        data,
        out=tmp_path / "run",
        options=Options(protocol=protocol, frames=FRAMES, workers=0),
    )

    assert outcome.exit_code == COMPLETE
    written = {path.name for path in (tmp_path / "run" / name).iterdir()}
    assert {"results.json", "results.md"} <= written
    if task.submission:
        submitted = task.submission(outcome.result.rows)
        assert {file.name for file in submitted} <= written
    if not task.has_answers or task.protocols[protocol].needs_judge:
        assert outcome.result.headline is None
    elif name != "tempcompass":  # its three tasks have different answers
        assert outcome.result.headline.value == pytest.approx(100 * 2 / 3)


@pytest.mark.parametrize("name", WRITERS)
def test_questions_about_one_video_stand_in_one_unit(name, tmp_path):
    records = TASKS[name].read(WRITERS[name](tmp_path))

    videos = {tuple(media.name for media in record.media) for record in records if record.group}
    if videos:
        assert len(units_of(records)) == len(videos)


def test_a_dry_run_shows_prompts_and_frames(tmp_path):
    data = WRITERS["videomme"](tmp_path)

    lines = list(dry_run("videomme", data, Tiling(28), Options(frames=FRAMES)))

    assert any("4 frames, [1, 3, 5, 8]" in line for line in lines)
    assert any("Frame4: <image>\\nSelect the best answer" in line for line in lines)


def test_answers_of_lists_hold_json_alone(tmp_path):
    """Whatever a reader keeps of a table can be written into the header's hash and the submission."""
    data = WRITERS["perceptiontest-test"](tmp_path)
    evaluate(
        OneAnswer(), "perceptiontest-test", data, out=tmp_path / "run", options=Options(frames=2, workers=0)
    )

    content = json.loads((tmp_path / "run/perceptiontest-test/perceptiontest_test.json").read_text())

    assert [entry["pred_id"] for entry in content] == [0, 0, 0]
