"""Rows of answers under a protocol, and what public code made of them."""

import json

from builders import golden

from pvc.evaluation.records import Media, Record, Shown
from pvc.evaluation.task import Row

VIDEO = (Media("video", "v.mp4"),)


def golden_evaluation(name):
    return json.loads(golden(f"evaluation/{name}.json").read_text(encoding="utf-8"))


def shown_frames(frames):
    """A video shown with one frame a second."""
    return [Shown(tuple(range(frames)), tuple(map(float, range(frames))), fps=1.0)]


def answered(protocol, records, answers):
    rows = []
    for record, answer in zip(records, answers, strict=True):
        parsed = protocol.parse(answer, record)
        rows.append(Row(record, answer, parsed, protocol.score(parsed, record)))
    return rows


def choice(question, options, answer=None, id="q", **meta):
    """A record of multiple choice about one video."""
    return Record(id, VIDEO, question, tuple(options), answer, meta)
