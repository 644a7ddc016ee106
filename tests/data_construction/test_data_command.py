"""`pvc data`: constructs data that train, says what a run would cost, and what went wrong."""

import json
from pathlib import Path

import pytest
import yaml
from construction import MODEL, images_of, write_list
from training_runs import RECIPE, losses, pvc, write_dynamic_model

from pvc.training.data_construction.asking import Asker


@pytest.fixture(scope="module")
def listed(tmp_path_factory) -> Path:
    return write_list(tmp_path_factory.mktemp("videos"), 4)


def construct(listed, out, server, *options):
    return pvc("data", "construct", listed, out, "--url", server.url, "--model", MODEL, *options)


def numbers(output: str) -> dict[str, str]:
    """The last two cells of each row of the printed table."""
    rows = [line.strip("| ").split(" | ") for line in output.splitlines() if line.startswith("| ")]
    return {row[-2].strip(): row[-1].strip() for row in rows}


def test_what_is_constructed_trains(listed, server, tmp_path):
    done = construct(listed, tmp_path / "data", server, "--tasks-per-video", 13, "--concurrency", 4)
    assert done.exit_code == 0, done.output
    assert numbers(done.stdout)["used"] == "52" and len(server.requests) == 52
    assert "OPENAI_API_KEY is not set" in done.stderr and "pvc train check" in done.stderr

    recipe = tmp_path / "own.yaml"
    settings = {
        "max_steps": 1,
        "max_tokens": 512,
        "fps": 1.0,
        "frame_tokens": [4, 36],
        "max_video_tokens": 60,
    }
    recipe.write_text(yaml.safe_dump(RECIPE | settings))
    model, run = write_dynamic_model(tmp_path / "model"), tmp_path / "run"
    trained = pvc("train", recipe, "--model", model, "--data", tmp_path / "data/meta.json", "--output", run)
    assert trained.exit_code == 0, trained.output
    assert len(losses(run)) == 1 and losses(run)[0] > 0


def test_a_dry_run_tells_the_cost_and_neither_asks_nor_writes(listed, server, tmp_path):
    options = ("--dry-run", "--image-tokens", 1000, "--prompt-price", 1e6, "--no-captions")
    done = construct(listed, tmp_path / "data", server, "--tasks", "story", *options)
    found = numbers(done.stdout)
    assert done.exit_code == 0 and not server.requests and not (tmp_path / "data").exists()
    assert (found["requests"], found["images in them"]) == ("4", "10")

    tokens = int(found["tokens of prompts, about"].replace(",", ""))
    assert 10 * 1000 < tokens < 10 * 1000 + 4 * 500
    assert float(found["cost, about"].replace(",", "")) == tokens


def test_a_dry_run_counts_what_a_run_then_asks(listed, server, tmp_path):
    out = tmp_path / "data"
    planned = numbers(construct(listed, out, server, "--dry-run").stdout)
    assert construct(listed, out, server).exit_code == 0
    images = sum(len(images_of(body)) for _, _, body in server.requests)
    assert (planned["requests"], planned["images in them"]) == (str(len(server.requests)), str(images))

    with (out / "replies.jsonl").open("ab") as file:
        file.write(b"torn")  # as of a run that is writing
    again = numbers(construct(listed, out, server, "--dry-run").stdout)
    assert (out / "replies.jsonl").read_bytes().endswith(b"torn")
    assert (again["requests"], again["replies that are there"]) == ("0", "12")

    other = construct(listed, out, server, "--dry-run", "--max-frames", 2)
    assert other.exit_code == 1 and "max_frames 128, now 2" in other.stderr


def test_a_run_that_is_not_complete_says_what_is_missing(listed, server, tmp_path):
    server.responses = [(400, b"no such model", {})]
    done = construct(listed, tmp_path / "data", server, "--concurrency", 1)
    assert done.exit_code == 3 and numbers(done.stdout)["missing"] == "1"
    assert "400 Bad Request: no such model" in done.stderr
    assert "1 replies are missing: run the same command again" in done.stderr

    without = pvc(
        "data", "construct", listed, tmp_path / "data", "--model", MODEL
    )  # of the replies there are
    assert without.exit_code == 3 and numbers(without.stdout)["used"] == "11"
    other = pvc("data", "construct", listed, tmp_path / "data", "--model", "another")
    assert other.exit_code == 3 and "12 replies are missing: give the run's own options" in other.stderr
    assert "without data" in other.stderr
    assert construct(listed, tmp_path / "data", server).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--url", "ftp://host"), "expected http://host/v1"),
        (("--url", "https://me:secret@host/v1"), "put the key into an environment variable"),
        (("--tasks", "storry"), "did you mean 'story'"),
        (("--root", "nowhere", "--prompts", "nowhere.yaml"), "nowhere.yaml"),
    ],
)
def test_a_wrong_option_is_one_line(listed, tmp_path, options, message):
    done = pvc("data", "construct", listed, tmp_path / "data", "--model", MODEL, *options)
    assert done.exit_code == 1 and message in done.stderr and "Traceback" not in done.output
    assert "secret" not in done.output and not (tmp_path / "data").exists()


def test_a_missing_model_or_list_is_one_line(listed, tmp_path):
    done = pvc("data", "construct", listed, tmp_path)
    assert done.exit_code == 1 and "--model is missing" in done.stderr
    done = pvc("data", "construct", tmp_path / "none.jsonl", tmp_path, "--model", MODEL)
    assert done.exit_code == 1 and "none.jsonl" in done.stderr


def test_tasks_are_listed_with_their_shares():
    done = pvc("data", "tasks")
    assert done.exit_code == 0 and "`timed_qa` | 6.8% | 4 | pairs" in done.stdout


def test_a_second_run_at_the_same_folder_is_refused(listed, server, tmp_path):
    from filelock import FileLock

    (tmp_path / "data").mkdir()
    with FileLock(tmp_path / "data" / ".lock"):
        done = construct(listed, tmp_path / "data", server)
    assert done.exit_code == 1 and "another run is writing" in done.stderr and not server.requests


def test_fields_of_a_request_are_added_and_left_out(listed, server, tmp_path):
    body = {"max_completion_tokens": 99, "max_tokens": None}
    assert construct(listed, tmp_path / "data", server, "--body", json.dumps(body)).exit_code == 0
    for _, _, sent in server.requests:
        assert sent["max_completion_tokens"] == 99 and not {"max_tokens", "temperature"} & sent.keys()

    assert construct(listed, tmp_path / "data", server).exit_code == 0  # another body is another request
    assert len(server.requests) == 24
    wrong = construct(listed, tmp_path / "data", server, "--body", '{"messages": []}')
    assert wrong.exit_code == 1 and "messages: such fields" in wrong.stderr


def test_ctrl_c_keeps_the_replies(listed, server, tmp_path, monkeypatch):
    def stop(asker, requests, progress):
        asker.concurrency = 1
        real(asker, requests[:2], progress)
        raise KeyboardInterrupt

    real = Asker.ask_all
    with monkeypatch.context() as patch:
        patch.setattr(Asker, "ask_all", stop)
        done = construct(listed, tmp_path / "data", server)
    assert done.exit_code == 3 and "the same command goes on" in done.stderr
    assert len((tmp_path / "data" / "constructed.jsonl").read_text().splitlines()) == 2

    done = construct(listed, tmp_path / "data", server, "--prompt-price", 10000)
    assert done.exit_code == 0 and len(server.requests) == 12
    assert numbers(done.stdout)["cost"] == "12.00"  # 100 tokens each
