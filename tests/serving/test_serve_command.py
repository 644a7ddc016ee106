"""`pvc serve`: what the command refuses before it loads a model, and what it names."""

import pytest
from typer.testing import CliRunner

from pvc import CHECKPOINT
from pvc.cli import app
from pvc.cli.serve import served_name
from pvc.serving.server import ServerOptions


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--host", "0.0.0.0"], "set PVC_API_KEY, or pass --without-key"),
        (["--allow-media-dir", "/nowhere"], "is no folder"),
        (["no/such/folder"], "is no model's folder"),
    ],
)
def test_what_cannot_be_served_is_told_in_a_line(arguments, words, monkeypatch, tmp_path):
    monkeypatch.delenv("PVC_API_KEY", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no/such/folder").mkdir(parents=True)
    result = CliRunner().invoke(app, ["serve", *arguments])
    assert result.exit_code == 1
    assert words in " ".join(result.stderr.split())


def test_a_model_has_the_name_of_its_folder_or_hub_id(tmp_path):
    (tmp_path / "PVC-8B").mkdir()
    assert served_name(str(tmp_path / "PVC-8B"), str(tmp_path / "PVC-8B")) == "PVC-8B"
    assert served_name("org/model", str(tmp_path)) == "org/model"
    assert served_name("", str(CHECKPOINT)) == "PVC-Tiny"


def test_names_of_the_host_are_checked_where_only_this_machine_asks_without_a_key():
    assert "localhost" in ServerOptions("m").host_names()
    assert "a.example" in ServerOptions("m", allowed_hosts=["a.example"]).host_names()
    assert ServerOptions("m", api_key="k").host_names() is None
    assert ServerOptions("m", host="0.0.0.0").host_names() is None
