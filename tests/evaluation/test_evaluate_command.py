"""`pvc evaluate` and `pvc compare` as people call them: exit codes, messages, files."""

import json
from dataclasses import replace

import counting_task
import pytest
from counting_task import NUMBER, AddingEngine, write_images
from typer.testing import CliRunner

from pvc import CHECKPOINT
from pvc.cli import app
from pvc.cli import evaluate as command
from pvc.evaluation import tasks


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "data")


@pytest.fixture
def engine(monkeypatch):
    engine = AddingEngine(wrong=("3",))
    monkeypatch.setattr(command, "load_engine", lambda *arguments: engine)
    return engine


def call(*arguments):
    result = CliRunner().invoke(app, [str(x) for x in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def evaluate(data, out, *arguments):
    return call("evaluate", "counting", "--data", data, "--out", out, "--workers", 0, *arguments)


def test_a_complete_run_ends_with_0_and_prints_its_table(data, tmp_path, engine):
    result = evaluate(data, tmp_path / "run")
    assert result.exit_code == 0
    assert "accuracy: **91.7**" in result.stdout and "| odd | 83.3 |" in result.stdout
    assert "written:" in result.stderr
    folder = tmp_path / "run/counting"
    assert {"results.json", "results.md", "samples.jsonl", "plot.svg", "rank0.jsonl"} <= {
        path.name for path in folder.iterdir()
    }
    assert (folder / "results.md").read_text() in result.stdout


def test_a_failed_sample_ends_with_1(data, tmp_path, engine):
    engine.failing = ("5",)
    result = evaluate(data, tmp_path / "run")
    assert result.exit_code == 1
    assert "1 samples failed and count as wrong" in result.stderr


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "no TASK is given"),
        (["countin"], "did you mean counting"),
        (["counting", "--protocol", "mine"], "choose one of default"),
        (["counting", "--data", "nowhere"], "there is no folder nowhere"),
        (["counting", "--data", "."], "files are missing"),
    ],
)
def test_wrong_usage_ends_with_2_before_weights_are_loaded(arguments, message, monkeypatch):
    def load(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(command, "load_engine", load)
    result = call("evaluate", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_answers_of_another_model_end_with_2(data, tmp_path, engine):
    evaluate(data, tmp_path / "run")
    engine.identity = {"name": "other"}
    result = evaluate(data, tmp_path / "run")
    assert result.exit_code == 2
    assert "--fresh" in result.stderr


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_run_ends_with_3_and_goes_on(data, tmp_path, engine, monkeypatch, error):
    answer = AddingEngine.answer

    def stops(self, units, settings):
        for done, found in enumerate(answer(self, units, settings)):
            if done == 4:
                raise error
            yield found

    monkeypatch.setattr(AddingEngine, "answer", stops)
    result = evaluate(data, tmp_path / "run")
    assert result.exit_code == 3
    assert "the same command goes on" in result.stderr
    monkeypatch.undo()
    monkeypatch.setattr(command, "load_engine", lambda *arguments: engine)
    engine.asked.clear()
    assert evaluate(data, tmp_path / "run").exit_code == 0
    assert len(engine.asked) == NUMBER - 4


def test_an_interrupt_ends_all_tasks(data, tmp_path, engine, monkeypatch):
    asked = []

    def stops(engine, plan, **options):
        asked.append(plan.task.name)
        raise KeyboardInterrupt

    monkeypatch.setattr("pvc.evaluation.run.run_plan", stops)
    result = call("evaluate", "counting", "counting", "--data", data, "--out", tmp_path)
    assert result.exit_code == 3
    assert asked == ["counting"]


def test_a_fault_in_a_rule_is_no_complete_run(data, tmp_path, engine, monkeypatch):
    """Python would end with 1, which says that some samples failed."""

    def fails(parsed, record):
        raise IndexError("string index out of range")

    faulty = replace(counting_task.PROTOCOL, score=fails)
    monkeypatch.setitem(counting_task.TASK.protocols, "default", faulty)
    result = evaluate(data, tmp_path / "run")
    assert result.exit_code == 3
    assert "record 0: the answer '1' cannot be compared with the reference '1'" in result.stderr


def test_a_dry_run_loads_no_weights_and_writes_nothing(data, tmp_path, monkeypatch):
    def load(*arguments):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(command, "load_engine", load)
    result = evaluate(data, tmp_path / "run", "--dry-run")
    assert result.exit_code == 0
    assert "What is 1 plus 1?" in result.stdout
    assert not (tmp_path / "run").exists()


def test_rescoring_prints_the_same_table(data, tmp_path, engine, monkeypatch):
    first = evaluate(data, tmp_path / "run")
    monkeypatch.setattr(command, "load_engine", None)
    again = evaluate(data, tmp_path / "run", "--rescore")
    assert again.exit_code == 0
    assert again.stdout == first.stdout


def test_the_list_names_all_tasks():
    result = call("evaluate", "--list")
    assert result.exit_code == 0
    assert "`counting`" in result.stdout
    assert not result.stderr


def test_two_runs_are_compared_by_a_command(data, tmp_path, engine):
    evaluate(data, tmp_path / "a")
    engine.wrong = ()
    evaluate(data, tmp_path / "b")
    result = call("compare", tmp_path / "a", tmp_path / "b")
    assert result.exit_code == 0
    assert "| counting | 12 | +8.33 |" in result.stdout
    result = call("compare", tmp_path / "a", tmp_path)
    assert result.exit_code == 1
    assert "holds no results" in result.stderr


def test_results_keep_what_they_were_made_with(data, tmp_path, engine):
    evaluate(data, tmp_path / "run", "--tiles", 3)
    header = json.loads((tmp_path / "run/counting/results.json").read_text())["header"]
    assert header["protocol"] == "default"
    assert header["settings"]["max_tiles"] == 3
    assert header["settings"]["generation"] == {"max_new_tokens": 5}
    assert header["model"] == engine.identity


def test_the_page_has_the_table_of_the_command():
    page = (CHECKPOINT / "docs/evaluation.md").read_text()
    lines = [line for line in call("evaluate", "--list").stdout.splitlines() if "`counting`" not in line]
    assert "\n".join(lines) in page


def test_a_command_reads_the_records_once(data, tmp_path, engine, monkeypatch):
    reads = []
    read = counting_task.TASK.read
    counted = replace(counting_task.TASK, read=lambda folder: reads.append(folder) or read(folder))
    monkeypatch.setitem(tasks.TASKS, "counting", counted)
    assert evaluate(data, tmp_path / "run").exit_code == 0
    assert len(reads) == 1
