"""PVC-Tiny's score by `evaluate` agrees with `pvc.tiny.scoring` on the same samples; the demo runs.

`exact_match` generates nothing: it asks whether greedy decoding would give each reference, in rows of packed
samples. `evaluate` reads files, calls `chat` and scores its answers. Both get the questions that PVC-Tiny was
trained on: the tasks are variants without the sentences that protocols add. ChartQA's samples have no number,
which it would accept within 5 %. Videos are folders of images, which lose nothing.
"""

from dataclasses import replace

import pytest

from pvc import CHECKPOINT
from pvc.evaluation.run import COMPLETE, Options, evaluate
from pvc.evaluation.task import percent
from pvc.evaluation.tasks.mme import TASK_NAMES
from pvc.frame_choice import get_index
from pvc.tiny import benchmark_demo as demo
from pvc.tiny.scoring import exact_match
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.scenes import draw
from pvc.training.run import load_processor


@pytest.fixture(scope="module")
def engine():
    return demo.tiny_engine()


def dataset_of(number, *tasks):
    return SyntheticDataset(number, seed=3, held_out=True, tasks=tasks)


def by_scoring(engine, dataset):
    """Right answers by task, as `tiny` scores them, and in all."""
    scores = exact_match(engine.model, load_processor(str(CHECKPOINT)), dataset, frames=demo.FRAMES)
    tasks = [dataset.task_of(i) for i in range(len(dataset))]
    return {task: round(score * tasks.count(task)) for task, score in scores.items()}


def by_evaluating(engine, task, folder):
    """Rows of a run."""
    with demo.registered(task):
        outcome = evaluate(engine, task.name, folder, out=folder / "run", options=Options(workers=0))
    assert outcome.exit_code == COMPLETE
    return outcome.result.rows


def right_by(rows, kind):
    """Right answers by what `kind` gives of a record."""
    found = {}
    for row in rows:
        found[kind(row.record)] = found.get(kind(row.record), 0) + int(row.score)
    return found


def write_mme(root, samples):
    """Two questions for each of MME's tasks, each about an image of its own."""
    folder = root / "mme"
    (folder / "Your_Results").mkdir(parents=True)
    for number, task in enumerate(TASK_NAMES):
        images = folder / "MME_Benchmark_release_version" / task
        images.mkdir(parents=True)
        lines = []
        for i in (2 * number, 2 * number + 1):
            draw(samples[i].scenes[0]).save(images / f"{i}.png")
            lines.append(f"{i}.png\t{samples[i].question}\t{samples[i].answer.capitalize()}\n")
        (folder / f"Your_Results/{task}.txt").write_text("".join(lines))


def test_an_mme_like_set_scores_as_tiny_scoring(engine, tmp_path):
    dataset = dataset_of(2 * len(TASK_NAMES), "exists")
    write_mme(tmp_path, [dataset.sample(i) for i in range(len(dataset))])
    rows = by_evaluating(engine, demo.synthetic_task("mme"), tmp_path)
    right = by_scoring(engine, dataset)["exists"]
    assert percent(rows) == pytest.approx(100 * right / len(dataset))
    assert right > 0.7 * len(dataset)


def test_a_chartqa_like_set_scores_as_tiny_scoring(engine, tmp_path):
    tasks = ("word", "word_at", "chart_highest", "place")
    dataset = dataset_of(32, *tasks)
    samples = [dataset.sample(i) for i in range(len(dataset))]
    demo.write_chartqa(tmp_path, {"human": samples[:16], "augmented": samples[16:]})
    rows = by_evaluating(engine, demo.synthetic_task("chartqa"), tmp_path)

    tasks_of_records = {
        f"{'human' if i < 16 else 'augmented'}/{i % 16}": x.task for i, x in enumerate(samples)
    }
    right = by_scoring(engine, dataset)
    assert right_by(rows, lambda record: tasks_of_records[record.id]) == right
    assert 0 < sum(right.values()) < len(dataset)  # wrong answers agree too


def frames_of_a_folder(video, frames):
    """Those that are shown of as many scenes in memory: a folder's files are numbered from 1."""
    return [1 + index for index in get_index(None, 1, video.total - 1, num_segments=frames).tolist()]


def test_an_mvbench_like_set_scores_as_tiny_scoring(engine, tmp_path):
    dataset = dataset_of(24, "motion", "colour_change", "count_blinks", "order_nth")
    samples = [dataset.sample(i) for i in range(len(dataset))]
    demo.write_mvbench(tmp_path, {"Episodic Reasoning": samples})
    task = demo.synthetic_mvbench()
    (protocol,) = task.protocols.values()
    settings = replace(protocol.settings, choose_frames=frames_of_a_folder)
    task = replace(task, protocols={"question alone": replace(protocol, settings=settings)})

    rows = by_evaluating(engine, task, tmp_path)
    right = by_scoring(engine, dataset)
    assert right_by(rows, lambda record: samples[int(record.id.rpartition("/")[2])].task) == right
    assert 0 < sum(right.values()) < len(dataset)


@pytest.mark.slow
def test_the_demo_prints_tables_and_the_paths_of_its_plots(tmp_path, capsys):
    demo.main(["--samples", "2", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for name in ("synthetic-chartqa", "synthetic-mvbench"):
        assert f"# {name}" in printed
        plot = tmp_path / name / "plot.svg"
        assert f"plot: {plot}" in printed and plot.read_text().startswith("<?xml")
        assert (tmp_path / name / "results.json").exists()
    assert "| Moving Direction |" in printed and "| human |" in printed
