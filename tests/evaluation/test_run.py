"""The loop of evaluation: nothing is lost, nothing is asked twice, and every way to end has its exit code."""

import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import counting_task
import pytest
from counting_task import NUMBER, AddingEngine, run, write_images

from pvc.evaluation import report
from pvc.evaluation.answer_file import AnswerFile, HeaderMismatch, json_lines, read_answers
from pvc.evaluation.judge import Reply
from pvc.evaluation.media import Tiling
from pvc.evaluation.records import DataError
from pvc.evaluation.run import COMPLETE, INCOMPLETE, SOME_FAILED, Options, Rank, dry_run, rescore
from pvc.evaluation.scoring import doubts
from pvc.evaluation.task import Row

ALL = {str(i) for i in range(NUMBER)}


@pytest.fixture
def data(tmp_path):
    return write_images(tmp_path / "data")


def lines(out: Path, rank: int = 0) -> list[dict]:
    """The lines of a rank without their times."""
    found = list(json_lines(out / "counting" / f"rank{rank}.jsonl"))
    return [{name: x for name, x in line.items() if name != "seconds"} for line in found]


def results(out: Path) -> dict:
    values = json.loads((out / "counting" / "results.json").read_text())
    return {name: x for name, x in values.items() if name not in ("timing", "slowest")}


def process(data, out, *arguments) -> int:
    return subprocess.run(
        [sys.executable, counting_task.__file__, data, out, *map(str, arguments)]
    ).returncode


def test_a_run_scores_all_records(data, tmp_path):
    outcome = run(data, tmp_path / "run", AddingEngine(wrong=("3", "5")))
    assert outcome.exit_code == COMPLETE
    assert outcome.result.headline.value == pytest.approx(100 * 10 / 12)
    values = results(tmp_path / "run")
    assert values["complete"] and values["counts"]["unparsed"] == 0
    assert values["sub_scores"]["parity"]["odd"]["value"] == pytest.approx(100 * 4 / 6)
    assert values["sub_scores"]["parity"]["even"]["value"] == 100
    assert values["paper"]["PVC-8B"]["difference"] == pytest.approx(100 * 10 / 12 - 90)
    assert values["paper"]["PVC-8B"]["in_interval"]
    submitted = json.loads((tmp_path / "run/counting/server.json").read_text())
    assert [x["answer"] for x in submitted[:4]] == ["1", "2", "3", "?"]


def test_workers_change_nothing(data, tmp_path):
    run(data, tmp_path / "none")
    run(data, tmp_path / "two", workers=2)
    assert lines(tmp_path / "none") == lines(tmp_path / "two")


@pytest.mark.slow
def test_a_killed_run_goes_on_to_the_same_file(data, tmp_path):
    run(data, tmp_path / "whole", AddingEngine(wrong=("3",)))
    assert process(data, tmp_path / "killed", "--die-after", 5) == -signal.SIGKILL
    assert len(lines(tmp_path / "killed")) == 1 + 5
    run(data, tmp_path / "killed", AddingEngine(wrong=("3",)))
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


@pytest.mark.parametrize("ranks", [2, 3])
def test_ranks_give_the_result_of_one_process(data, tmp_path, ranks):
    run(data, tmp_path / "one", AddingEngine(wrong=("3",)))
    engines = [AddingEngine(wrong=("3",)) for _ in range(ranks)]
    outcomes = [run(data, tmp_path / "some", engine, Rank(i, ranks)) for i, engine in enumerate(engines)]
    assert [x.result is None for x in outcomes] == [True] * (ranks - 1) + [False]
    assert sorted(sum((engine.asked for engine in engines), [])) == sorted(ALL)
    assert results(tmp_path / "some") == results(tmp_path / "one")


def test_a_run_goes_on_with_another_number_of_ranks(data, tmp_path):
    out = tmp_path / "run"
    run(data, out, rank=Rank(1, 3))
    done = set(read_answers(out / "counting"))
    engine = AddingEngine()
    assert run(data, out, engine).exit_code == COMPLETE
    assert set(engine.asked) == ALL - done and done
    whole = results(out)
    run(data, tmp_path / "one")
    assert whole == results(tmp_path / "one")


def test_a_torn_last_line_is_asked_again(data, tmp_path):
    out = tmp_path / "run"
    run(data, out)
    path = out / "counting/rank0.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-7])
    engine = AddingEngine()
    run(data, out, engine)
    assert engine.asked == [str(NUMBER - 1)]
    assert path.read_bytes() == whole


def test_an_interrupted_run_keeps_its_answers(data, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, AddingEngine(stop_after=4))
    engine = AddingEngine()
    run(data, tmp_path, engine)
    assert set(engine.asked) == ALL - {"0", "1", "2", "3"}


def test_a_full_disk_ends_the_run_and_loses_no_answer(data, tmp_path, monkeypatch):
    append = AnswerFile.append

    def full_after_six(self, line):
        if line.get("id") == "6":
            self._file.write(b'{"id": "6", "ans')  # what still fitted
            self._file.flush()
            raise OSError(28, "No space left on device")
        append(self, line)

    monkeypatch.setattr(AnswerFile, "append", full_after_six)
    with pytest.raises(OSError, match="No space left"):
        run(data, tmp_path)
    monkeypatch.undo()
    engine = AddingEngine()
    assert run(data, tmp_path, engine).exit_code == COMPLETE
    assert engine.asked == [str(i) for i in range(6, NUMBER)]


def test_a_failed_sample_is_wrong_marked_and_tried_again(data, tmp_path):
    outcome = run(data, tmp_path, AddingEngine(failing=("2",)))
    assert outcome.exit_code == SOME_FAILED
    assert outcome.result.headline.value == pytest.approx(100 * 11 / 12)
    assert results(tmp_path)["errors"] == {"2": "OutOfMemoryError: too large"}
    engine = AddingEngine()
    assert run(data, tmp_path, engine).exit_code == COMPLETE
    assert engine.asked == ["2"]
    assert results(tmp_path)["errors"] == {}


def test_a_broken_image_fails_its_questions_alone(data, tmp_path):
    (data / "1.png").write_bytes(b"no image")
    outcome = run(data, tmp_path)
    assert outcome.exit_code == SOME_FAILED
    assert set(outcome.result.errors) == {"2", "3"}
    assert outcome.result.headline.value == pytest.approx(100 * 10 / 12)


def test_missing_media_are_listed_before_the_start(data, tmp_path):
    (data / "1.png").unlink()
    (data / "4.png").unlink()
    engine = AddingEngine()
    with pytest.raises(DataError, match=r"(?s)2 files are missing, of 4 records.*1\.png.*4\.png"):
        run(data, tmp_path, engine)
    assert not engine.asked


def test_missing_media_can_be_left_out_which_marks_the_result(data, tmp_path):
    (data / "1.png").unlink()
    outcome = run(data, tmp_path, skip_missing=True)
    assert len(outcome.result.rows) == NUMBER - 2
    values = results(tmp_path)
    assert values["partial"] == ["2 records left out: their media are missing"]
    assert values["paper"] == {}
    assert not (tmp_path / "counting/server.json").exists()


def test_a_limited_run_is_partial_and_can_be_made_whole(data, tmp_path):
    run(data, tmp_path, limit=5)
    values = results(tmp_path)
    assert values["partial"] == ["the first 5 records"] and values["paper"] == {}
    engine = AddingEngine()
    run(data, tmp_path, engine)
    assert len(engine.asked) == NUMBER - 5
    assert results(tmp_path)["partial"] == []


def test_answers_of_another_model_are_refused_by_name(data, tmp_path):
    run(data, tmp_path)
    other = AddingEngine()
    other.identity = {"name": "adder", "weights": "1"}
    with pytest.raises(HeaderMismatch, match="model.weights = '0', now '1'.*--fresh"):
        run(data, tmp_path, other)
    with pytest.raises(HeaderMismatch, match=r"settings\.max_tiles = 1, now 2"):
        run(data, tmp_path, tiles=2)
    assert run(data, tmp_path, other, fresh=True).exit_code == COMPLETE
    assert len(other.asked) == NUMBER


def test_a_model_may_be_renamed(data, tmp_path):
    run(data, tmp_path, limit=5)
    renamed = AddingEngine()
    renamed.identity = {"name": "adder-2", "weights": "0"}
    assert run(data, tmp_path, renamed).exit_code == COMPLETE
    assert len(renamed.asked) == NUMBER - 5


def test_answers_to_other_prompts_are_refused(data, tmp_path, monkeypatch):
    run(data, tmp_path, limit=5)
    other = replace(counting_task.PROTOCOL, prompt=lambda record, shown: record.question + " Be brief.")
    monkeypatch.setitem(counting_task.TASK.protocols, "default", other)
    with pytest.raises(HeaderMismatch, match="prompts"):
        run(data, tmp_path)


def test_a_fresh_run_of_two_ranks_asks_everything_again(data, tmp_path):
    """Whichever starts first still finds the other's old file."""
    run(data, tmp_path)
    run(data, tmp_path, rank=Rank(0, 2), tiles=2, fresh=True)
    (tmp_path / "counting/rank1.jsonl").write_bytes((tmp_path / "counting/rank0.jsonl").read_bytes())
    engines = [AddingEngine(wrong=("3",)), AddingEngine(wrong=("3",))]
    for i in (1, 0):
        outcome = run(data, tmp_path, engines[i], Rank(i, 2), fresh=True, tiles=3)
    assert outcome.exit_code == COMPLETE
    assert sorted(engines[0].asked + engines[1].asked) == sorted(ALL)
    assert results(tmp_path)["counts"]["records"] == NUMBER
    assert results(tmp_path)["header"]["settings"]["max_tiles"] == 3


def test_a_fresh_run_that_is_interrupted_leaves_no_old_results(data, tmp_path):
    run(data, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path, AddingEngine(stop_after=4), fresh=True)
    assert [path.name for path in (tmp_path / "counting").glob("*results*")] == []


def test_two_answers_to_a_record_are_an_error(data, tmp_path):
    run(data, tmp_path)
    folder = tmp_path / "counting"
    text = (folder / "rank0.jsonl").read_text()
    (folder / "rank1.jsonl").write_text(text.replace('"answer": "3"', '"answer": "4"'))
    with pytest.raises(DataError, match="two answers, '3' and '4'"):
        read_answers(folder)


def test_rescoring_needs_no_model(data, tmp_path, monkeypatch):
    run(data, tmp_path, AddingEngine(wrong=("3",)))
    before = results(tmp_path)
    (tmp_path / "counting/results.json").unlink()
    assert rescore("counting", data, out=tmp_path).exit_code == COMPLETE
    assert results(tmp_path) == before


def test_rescoring_takes_the_protocol_of_the_run_and_needs_no_media(data, tmp_path):
    run(data, tmp_path, protocol="judged")
    (data / "1.png").unlink()
    assert rescore("counting", data, out=tmp_path).result.protocol == "judged"
    with pytest.raises(DataError, match="made with protocol 'judged', not 'default'"):
        rescore("counting", data, out=tmp_path, options=Options(protocol="default"))


def test_rescoring_refuses_other_data_and_incomplete_answers(data, tmp_path, monkeypatch):
    run(data, tmp_path, limit=5)
    assert rescore("counting", data, out=tmp_path).exit_code == INCOMPLETE
    assert rescore("counting", data, out=tmp_path, options=Options(limit=5)).exit_code == COMPLETE
    monkeypatch.setattr(counting_task, "NUMBER", 8)
    with pytest.raises(DataError, match="data"):
        rescore("counting", data, out=tmp_path)


def test_rescoring_imports_no_torch():
    script = "import sys, pvc.evaluation.run, pvc.evaluation.tasks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_a_dry_run_shows_prompts_and_tiles(data):
    text = "\n".join(dry_run("counting", data, Tiling(28), Options(limit=3)))
    assert "What is 1 plus 1?" in text and "1 tiles" in text and "max_new_tokens" in text
    assert "[2]" in text and "[3]" not in text


def test_units_with_other_media_are_asked_apart(data, tmp_path):
    seen = []

    class Spy(AddingEngine):
        def answer(self, units, settings):
            for unit in units:
                seen.append([request.record.id for request in unit.requests])
                yield from super().answer(iter([unit]), settings)

    run(data, tmp_path, Spy())
    assert seen == [[str(i), str(i + 1)] for i in range(0, NUMBER, 2)]


def test_two_runs_are_compared_on_common_records(data, tmp_path):
    run(data, tmp_path / "a", AddingEngine(wrong=("0", "1", "2")))
    run(data, tmp_path / "b", AddingEngine(wrong=("0",)))
    test = report.compare(tmp_path / "a", tmp_path / "b")["counting"]
    assert (test.n, test.only_a, test.only_b) == (NUMBER, 0, 2)
    assert test.difference == pytest.approx(2 / 12)
    assert test.p_value == 0.5  # two groups differ: a quarter of the flips on each side


def test_runs_that_cannot_be_compared_say_why(data, tmp_path, monkeypatch):
    run(data, tmp_path / "a")
    run(data, tmp_path / "answers", protocol="judged")
    monkeypatch.setattr(counting_task, "NUMBER", 8)
    run(data, tmp_path / "less")
    for other, reason in [
        ("nowhere", "nowhere holds no results"),
        ("less", "counting: the runs differ in data"),
    ]:
        with pytest.raises(DataError, match=reason):
            report.compare(tmp_path / "a", tmp_path / other)
    with pytest.raises(DataError, match="answers without scores"):
        report.compare(tmp_path / "answers", tmp_path / "answers")


def test_equal_answers_are_doubted_where_references_are_held_back(data, tmp_path):
    records = [replace(record, answer=None) for record in counting_task.read(data)] * 2
    rows = [Row(record, "B", "B", 0.0) for record in records]
    assert doubts(rows, {"empty": 0}) == ["24 of 24 answers are the same: 'B'"]
    right = [Row(replace(record, answer="B"), "B", "B", 1.0) for record in records]
    assert doubts(right, {"empty": 0}) == []


class FixedJudge:
    """Gives 4 to each right answer, an unreadable word to "?", and no reply to the question about 7."""

    model = "fixed"

    def ask_all(self, asked, *, max_tokens):
        def reply(text):
            if "What is 7" in text:
                return Reply(None, "503")
            return Reply("hm" if text.endswith("?") else "4")

        return [reply(messages[0]["content"]) for messages in asked]


def test_a_judge_is_asked_about_each_answer_and_all_replies_are_counted(data, tmp_path):
    engine = AddingEngine(wrong=("3",), failing=("5",))
    outcome = run(data, tmp_path, engine, judge=FixedJudge(), protocol="judged")
    judgement = outcome.result.judgement
    assert (judgement.asked, judgement.unreadable, judgement.failed) == (NUMBER - 1, 1, 1)
    assert judgement.figures["mark"] == pytest.approx(4 * (NUMBER - 3) / NUMBER)
    assert outcome.result.headline is None
    assert outcome.exit_code == SOME_FAILED
    assert results(tmp_path)["judge"]["paper"] == {"mark": {"PVC-8B": 3.5}}
    text = (tmp_path / "counting/results.md").read_text()
    assert "Judged by `fixed`: 11 answers shown, 1 replies unreadable, 1 calls failed" in text


def test_without_a_judge_there_are_answers_and_no_score(data, tmp_path):
    outcome = run(data, tmp_path, protocol="judged")
    assert outcome.exit_code == COMPLETE
    assert outcome.result.headline is None
    assert "the score needs a judge" in (tmp_path / "counting/results.md").read_text()
    later = rescore("counting", data, out=tmp_path, options=Options(protocol="judged"), judge=FixedJudge())
    assert later.result.judgement.asked == NUMBER
