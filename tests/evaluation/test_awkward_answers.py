"""Whatever a model writes is parsed and scored: no rule of any task raises."""

import json

import openpyxl
import pytest
from whole_tasks import WRITTEN, write

from pvc.evaluation.scoring import score_row
from pvc.evaluation.submit import write_submission
from pvc.evaluation.tasks import TASKS

AWKWARD = (
    *("", " ", "\n\n", "\t", "\x00", "\x1b[31m", "\r\n\u2028", "\ud800", "A\udfff", "\ufeff"),
    *(
        "A",
        "a",
        "(",
        "(A",
        "(A)",
        "A)",
        ") ",
        "A.",
        ".",
        ". A",
        ": ",
        "Caption A: ",
        "A: b: c",
        "=A1",
        "Z",
        "@",
    ),
    *("7", "-", "-1", "1,200", "1e400", "inf", "-inf", "nan", "NaN%", "%", "1_000", "٣", "½", "²", "0"),
    *(
        "是",
        "不是",
        "否",
        "答案是B",
        "选项:",
        "Ｂ",
        "无法判断",
        "。",
        "é",
        "e\u0301",
        "👍",
        "I'm sorry, but I can't",
    ),
    *(
        "yes",
        "no",
        "Yes.",
        "</s>",
        "<think>",
        "<think>a</think>",
        "</think>",
        "{}",
        "[]",
        "['a'",
        "None",
        "null",
    ),
    *(
        "|",
        "a|b",
        "`",
        "\\",
        '"',
        "'",
        "answer is",
        "Answer: ",
        "the answer is",
        "so ",
        "is ",
        "=",
        "\n".join("ABCD"),
    ),
    *(
        "A" * 5000,
        "9" * 2000,
        "9" * 2000 + "a",
        "a b " * 2000,
        "(A) " * 1000,
        "the answer is A\n" * 300,
        "," * 3000,
    ),
)


JUDGED = [name for name in WRITTEN if next(iter(TASKS[name].protocols.values())).judge]


JUDGED = [name for name in WRITTEN if next(iter(TASKS[name].protocols.values())).judge]


@pytest.mark.parametrize("name", WRITTEN)
def test_no_answer_breaks_parsing_scoring_or_submission(name, tmp_path):
    task = TASKS[name]
    write(name, tmp_path / "data")
    records = task.read(tmp_path / "data")

    for protocol in task.protocols.values():
        by_answer = [[score_row(record, {"answer": x}, protocol) for record in records] for x in AWKWARD]
        for rows in by_answer:
            assert all(0 <= row.score <= 1 for row in rows)
            json.dumps([row.parsed for row in rows])
            if task.has_answers:
                protocol.metric.headline(rows)
                protocol.metric.others(rows)

        # each answer once, in runs of different ones
        for start in range(0, len(AWKWARD), len(records)):
            mixed = [rows[i] for i, rows in enumerate(by_answer[start : start + len(records)])]
            assert write_submission(task, mixed, tmp_path, is_whole=True) == []
        check_submitted(tmp_path)


def check_submitted(folder):
    """Files for servers can be opened by others."""
    for path in folder.glob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
    for path in folder.glob("*.xlsx"):
        openpyxl.load_workbook(path)


@pytest.mark.parametrize("name", JUDGED)
def test_no_answer_and_no_reply_breaks_the_judge(name, tmp_path):
    task = TASKS[name]
    write(name, tmp_path)
    protocol = next(iter(task.protocols.values()))
    for record in task.read(tmp_path):
        for text in AWKWARD:
            assert isinstance(protocol.judge.messages(record, text), list)
            reading = protocol.judge.read(text, record)
            assert reading is None or isinstance(reading, dict)
