"""Folders that somebody else made: damaged JSON, and the one-line error of a command that is given them."""

import json
from pathlib import Path

from typer.testing import CliRunner

from pvc.cli import app
from pvc.json_files import JSON_DEPTH


def write_json(path: Path, values) -> Path:
    path.write_text(json.dumps(values))
    return path


def edit_json(file: Path, edit):
    values = json.loads(file.read_text())
    edit(values)
    write_json(file, values)


def nested(depth: int) -> str:
    return '{"a": ' * depth + "1" + "}" * depth


NO_OBJECTS = {
    "a list": "[]",
    "a number": "5",
    "text": '"config"',
    "null": "null",
    "nothing": "",
    "nested deeply": nested(100_000),
    "nested less deeply": nested(JSON_DEPTH + 1),
    "a list nested deeply": "[" * 100_000,
    "another encoding": b'{"a": "\xff"}',
    "bytes": bytes(100),
    "a name twice": '{"model_type": "internvl_chat", "model_type": "pvc"}',
    "a number of many digits": '{"a": ' + "1" * 10_000 + "}",
}


def write_damaged(file: Path, content: str | bytes):
    file.write_bytes(content if isinstance(content, bytes) else content.encode())


def pvc(*arguments) -> str:
    """What a command that must fail prints on stderr: one line, without a traceback."""
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert done.exit_code == 1 and isinstance(done.exception, SystemExit), done.output
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}
