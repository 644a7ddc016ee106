"""lmms-eval with the adapter and `pvc evaluate`'s loop give the same answers to the same questions.

    python tests/lmms_eval/compare.py          in an environment with lmms-eval: `make test-lmms-eval`

Two small data sets in the layouts of AI2D and Video-MME are drawn. Our loop answers them, and lmms-eval gets
the same texts and media as tasks of its own, whose names the adapter gives the same tiles and frames.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from video_benchmark_files import write_videomme

from pvc import CHECKPOINT
from pvc.evaluation.engine import ChatEngine
from pvc.evaluation.media import layouts
from pvc.evaluation.run import COMPLETE, Options, evaluate
from pvc.evaluation.tasks import TASKS
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.tiny.synthetic.dataset import SyntheticDataset
from pvc.tiny.synthetic.scenes import draw
from pvc.tiny.synthetic.video_files import write_video

IMAGES, VIDEOS = 12, 2
NAMES = {"ai2d": "ai2d_compared", "videomme": "videomme_compared"}  # ours -> lmms-eval's
FUNCTIONS = """from PIL import Image

def image(doc):
    return [Image.open(doc["media"])]

def video(doc):
    return [doc["media"]]

def text(doc, lmms_eval_specific_kwargs=None):
    return doc["text"]

def score(doc, results):
    return {"acc": float(results[0].strip() == doc["answer"])}
"""


def write_data(root: Path) -> None:
    """Questions about shapes in the layout of AI2D, about moving shapes in that of Video-MME."""
    folder = root / "ai2diagram"
    folder.mkdir(parents=True)
    images = SyntheticDataset(IMAGES, held_out=True, tasks=["colour", "exists", "shape", "count"])
    lines = []
    for i in range(IMAGES):
        sample = images.sample(i)
        draw(sample.scenes[0]).save(folder / f"{i}.png")
        line = {"image": f"{i}.png", "question": sample.question, "question_id": i, "answer": sample.answer}
        lines.append(json.dumps(line))
    (folder / "test_vlmevalkit.jsonl").write_text("\n".join(lines) + "\n")

    videos = SyntheticDataset(VIDEOS, held_out=True, tasks=["motion"])
    samples = []
    for i in range(VIDEOS):
        source = root / f"source{i}.mp4"
        write_video(source, [draw(scene) for scene in videos.sample(i).scenes])
        for question in ("Where does it move?", "What moves?", "How many shapes are there?"):
            options = ["left", "right", "up", "down"]
            samples.append({"video": str(i), "source": source, "question": question, "options": options})
    write_videomme(root, [sample | {"answer": "A"} for sample in samples])


def ask_by_our_loop(root: Path, out: Path) -> dict[str, dict[str, str]]:
    """Answers by task and id."""
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype="float32").eval()
    tokenizer = AutoTokenizer.from_pretrained(str(CHECKPOINT), trust_remote_code=True)
    answers = {}
    for name in NAMES:
        engine = ChatEngine(model, tokenizer, {"name": "PVC-Tiny"})
        outcome = evaluate(engine, name, root, out=out, options=Options(workers=0))
        assert outcome.exit_code == COMPLETE and outcome.result is not None, name
        answers[name] = {row.record.id: row.answer or "" for row in outcome.result.rows}
    return answers


def write_lmms_tasks(root: Path, folder: Path) -> None:
    """The same texts and media as tasks of lmms-eval, with the same options of generation."""
    folder.mkdir()
    (folder / "functions.py").write_text(FUNCTIONS)
    for name, lmms_name in NAMES.items():
        protocol = next(iter(TASKS[name].protocols.values()))
        rows = []
        for record in TASKS[name].read(root):
            shown = layouts(record, protocol.settings)
            text = protocol.prompt(record, shown).rpartition("<image>\n")[2]  # the adapter writes the frames
            row = {"id": record.id, "media": str(record.media[0].source), "text": text}
            rows.append(json.dumps(row | {"answer": str(record.answer)}))
        (folder / f"{name}.jsonl").write_text("\n".join(rows) + "\n")

        kind = "video" if name == "videomme" else "image"
        task = {
            "task": lmms_name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "test_split": "test",
            "output_type": "generate_until",
            "doc_to_target": "answer",
            "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
            "generation_kwargs": dict(protocol.settings.generation),
        }
        functions = {"doc_to_visual": kind, "doc_to_text": "text", "process_results": "score"}
        lines = "".join(f"{key}: !function functions.{value}\n" for key, value in functions.items())
        (folder / f"{lmms_name}.yaml").write_text(yaml.safe_dump(task) + lines)


def ask_by_lmms_eval(folder: Path, out: Path, batch: int) -> dict[str, dict[str, str]]:
    """Answers by our task's name and id; lmms-eval runs as a process, offline."""
    offline = dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"), "1")
    command = [sys.executable, "-m", "lmms_eval", "--model", "pvc", "--model_args", "dtype=float32,workers=1"]
    command += ["--tasks", ",".join(NAMES.values()), "--include_path", str(folder)]
    command += ["--batch_size", str(batch), "--output_path", str(out), "--log_samples"]
    environment = os.environ | offline | {"HF_HOME": str(out / "hub")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)

    answers: dict[str, dict[str, str]] = {}
    for name, lmms_name in NAMES.items():
        files = list(out.rglob(f"*samples_{lmms_name}.jsonl"))
        assert len(files) == 1, done.stdout + done.stderr  # after a crash it has exit code 0 and no file
        lines = [json.loads(line) for line in files[0].read_text().splitlines()]
        ids = [json.loads(line)["id"] for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        answers[name] = {ids[line["doc_id"]]: flat(line["filtered_resps"]) for line in lines}
    return answers


def flat(value) -> str:
    """The text within lists of one."""
    while isinstance(value, list):
        (value,) = value
    return value


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data")
        write_lmms_tasks(root / "data", root / "tasks")
        ours = ask_by_our_loop(root / "data", root / "ours")
        for batch in (1, 4):
            theirs = ask_by_lmms_eval(root / "tasks", root / f"lmms{batch}", batch)
            assert theirs == ours, f"batch {batch}: {theirs} is not {ours}"

    for name, answers in ours.items():
        assert len(set(answers.values())) > 1, f"{name}: all answers are equal"
        print(f"{name}: {len(answers)} answers are the same, alone and in batches of 4")


if __name__ == "__main__":
    main()
