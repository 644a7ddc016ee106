"""The command `pvc`: answers, dialogues, models, and what it says where something is wrong.

Most tests run it in this process, on a tiny model in the place of the one that it would load.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

import pytest
import torch
from builders import tiny_model
from PIL import Image
from typer.testing import CliRunner

from pvc import CHECKPOINT, cli
from pvc.conversion.printable import CONTROL_CHARACTERS
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

IMAGE, OTHER, VIDEO = (str(CHECKPOINT / "assets" / x) for x in ("picture1.png", "picture2.png", "video.mp4"))
TOKENS = 12
SETTINGS = {"max_new_tokens": TOKENS, "do_sample": False}
NOTICE = "PVC-Tiny was trained on synthetic images and videos only"


@pytest.fixture(scope="module")
def loaded():
    tokenizer = InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    model = tiny_model(llm_config={"vocab_size": 2048}, image_token_id=2041)
    images = PVCImageProcessor.from_model_config(model.config)
    return model, PVCProcessor(images, tokenizer, num_frames=4)


@pytest.fixture
def tiny(loaded, monkeypatch):
    """The tiny model and its processor, which the command then uses."""
    monkeypatch.setattr(cli.chat, "load_model", lambda *_: loaded)
    return loaded


def pvc_chat(*arguments, typed: str | None = None):
    return CliRunner().invoke(cli.app, ["chat", f"--max-new-tokens={TOKENS}", *arguments], input=typed)


def printed(result) -> str:
    assert result.exit_code == 0, result.output
    return words(result.stdout)


def words(*texts: str) -> str:
    """Texts as one, as they are printed, but for white space, which `chat` strips and a terminal needs."""
    return " ".join(CONTROL_CHARACTERS.sub("\ufffd", " ".join(texts)).split())


def tiles(processor, *files: str) -> list[torch.Tensor]:
    images = processor.image_processor
    return [images.video(x, num_frames=4).tiles if x == VIDEO else images.image(x).tiles for x in files]


def expected(loaded, question: str, *files: str, history=None) -> tuple[str, list]:
    """The answer of `chat` about images, and the history with it. The question is stripped of nothing."""
    model, processor = loaded
    shown = tiles(processor, *files)
    pixels = torch.cat(shown) if shown else None
    return model.chat(
        processor.tokenizer,
        pixels,
        question,
        SETTINGS,
        history=history,
        return_history=True,
        num_patches_list=[len(x) for x in shown] or None,
    )


# ---- one question


def test_answer_is_that_of_chat(tiny):
    answer, _ = expected(tiny, "<image>\n<image>\nWhat differs?", IMAGE, OTHER)
    alone, _ = expected(tiny, "<image>\nWhat differs?", IMAGE)
    assert answer != alone
    assert printed(pvc_chat("What differs?", "--image", IMAGE, "--image", OTHER)) == words(answer)
    assert printed(pvc_chat("--image", IMAGE, "What differs?")) == words(alone)


def test_video_is_shown_as_chat_shows_it(tiny):
    model, processor = tiny
    (frames,) = tiles(processor, VIDEO)
    lines = "".join(f"Frame{i + 1}: <image>\n" for i in range(4))
    media = {"data_flag": [3], "num_patches_list": [1] * 4}
    answer = model.chat(processor.tokenizer, frames, lines + "What moves?", SETTINGS, **media)
    assert printed(pvc_chat("What moves?", "--video", VIDEO)) == words(answer)


def test_streamed_answer_comes_in_pieces_that_are_the_answer_printed_at_once(tiny, monkeypatch):
    pieces, show = [], cli.chat.print_answer
    monkeypatch.setattr(cli.chat, "print_answer", lambda text: (pieces.append(text), show(text)))
    streamed = pvc_chat("What is this?", "--image", IMAGE).stdout
    assert len(pieces) > TOKENS / 2 and "".join(pieces) == streamed
    pieces.clear()
    assert pvc_chat("What is this?", "--image", IMAGE, "--no-stream").stdout == streamed
    assert pieces == [streamed]


def test_system_message_is_told_to_the_model(tiny, monkeypatch):
    usual = printed(pvc_chat("What?"))
    monkeypatch.setattr(tiny[0], "system_message", "You are a poet.")
    answer, _ = expected(tiny, "What?")
    assert printed(pvc_chat("What?", "--system", "You are a poet.")) == words(answer) != usual


def test_control_characters_and_special_tokens_of_an_answer_do_not_reach_the_terminal(tiny, monkeypatch):
    model, processor = tiny
    ids = processor.tokenizer("\x1b[31mred\x9b\r\tend\n<|im_end|>", add_special_tokens=False).input_ids

    def generate(input_ids, streamer, **_):
        for values in (input_ids, *torch.tensor(ids)[:, None]):
            streamer.put(values)
        streamer.end()

    monkeypatch.setattr(model, "generate", generate)
    assert pvc_chat("Hello").stdout == "\ufffd[31mred\ufffd\ufffd\tend\n\n"


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_an_empty_answer_is_reported_on_stderr(stream, tiny, monkeypatch):
    model, processor = tiny
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")

    def generate(input_ids, streamer, **_):
        for values in (input_ids, torch.tensor([end])):
            streamer.put(values)
        streamer.end()

    monkeypatch.setattr(model, "generate", generate)
    result = pvc_chat("Hello", stream)
    assert result.exit_code == 0 and result.stdout.strip() == ""
    assert "(empty answer)" in result.stderr


def test_no_other_answer_is_called_empty(tiny):
    assert "(empty answer)" not in pvc_chat("What?").stderr


GIVEN = {
    "nothing": ([], {}, {"do_sample": False}),
    "frames": (["--num-frames=2"], {"num_frames": 2}, {"do_sample": False}),
    "frames a second": (["--fps=1.5"], {"fps": 1.5}, {"do_sample": False}),
    "both": (["--fps=2", "--num-frames=3"], {"fps": 2, "max_frames": 3}, {"do_sample": False}),
    "tiles": (["--max-tiles=2"], {"max_tiles": 2}, {"do_sample": False}),
    "sampling": (["--sample"], {}, {"do_sample": True}),
    "temperature": (["--temperature=0.5"], {}, {"do_sample": True, "temperature": 0.5}),
    "temperature zero": (["--temperature=0"], {}, {"do_sample": False}),
}


@pytest.mark.parametrize("name", GIVEN)
def test_options_reach_processor_and_generate(name, tiny, monkeypatch):
    dialogues = []
    monkeypatch.setattr(cli.chat.ChatSession, "ask", lambda dialogue, _: dialogues.append(dialogue))
    given, media_options, generate_options = GIVEN[name]
    assert pvc_chat("What?", *given).exit_code == 0
    assert dialogues[0].media_options == media_options
    assert dialogues[0].generate_options == {"max_new_tokens": TOKENS} | generate_options


def test_answer_ends_with_the_end_token_of_the_template(tiny, monkeypatch):
    model, processor = tiny
    monkeypatch.setattr(processor, "template", "phi3-chat")
    monkeypatch.setattr(processor.tokenizer, "get_added_vocab", lambda: {"<|end|>": 77, "<|im_end|>": 2037})
    ends = []
    monkeypatch.setattr(model, "generate", lambda eos_token_id, **_: ends.append(eos_token_id))
    assert pvc_chat("What?").exit_code == 0
    assert ends == [[77]]


def test_media_options_change_what_is_shown(tiny, monkeypatch):
    model, generate, shown = tiny[0], tiny[0].generate, []

    def recording(**inputs):
        if "clip_grid" in inputs:  # what is new of it is generated by a second call
            shown.append(inputs["clip_grid"][0].tolist())
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", recording)
    for options in (["--num-frames=2"], ["--fps=4", "--num-frames=3"]):
        assert pvc_chat("What?", "--video", VIDEO, *options).exit_code == 0
    assert pvc_chat("What?", "--image", IMAGE, "--max-tiles=1").exit_code == 0
    assert shown == [[2, 1, 1], [3, 1, 1], [1, 1, 4]]


# ---- a dialogue


def test_later_turns_know_the_earlier_ones_and_their_media(tiny):
    first, history = expected(tiny, "<image>\nWhat is it?", IMAGE)
    second, history = expected(tiny, "<image>\nAnd this?", IMAGE, OTHER, history=history)
    third, _ = expected(tiny, "Sure?", IMAGE, OTHER, history=history)
    assert len({first, second, third, expected(tiny, "Sure?")[0]}) == 4
    typed = f"What is it?\n/image {OTHER}\n\nAnd this?\nSure?\n"
    assert printed(pvc_chat("--image", IMAGE, typed=typed)) == words(first, second, third)


def test_a_later_question_encodes_no_image_again(tiny, monkeypatch):
    model, _ = tiny
    encoded, encode = [], model.model.get_image_features
    monkeypatch.setattr(model.model, "get_image_features", lambda *a: encoded.append(len(a[0])) or encode(*a))
    printed(pvc_chat("--image", IMAGE, typed="What is this?\nAnd now?\n"))
    assert len(encoded) == 1


def test_clear_forgets_what_was_said_and_shown_but_not_the_system_message(tiny, monkeypatch):
    monkeypatch.setattr(tiny[0], "system_message", "You are a poet.")
    first, _ = expected(tiny, "<image>\nWhat?", IMAGE)
    alone, _ = expected(tiny, "What?")
    typed = f"What?\n/image {OTHER}\n/clear\nWhat?\n"
    result = pvc_chat("--image", IMAGE, "--system", "You are a poet.", typed=typed)
    assert printed(result) == words(first, alone)


@pytest.mark.parametrize("end", ["/exit\nWhat?\n", ""])
def test_dialogue_ends_politely(end, tiny):
    result = pvc_chat(typed=end)
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize("line", ["/help", "/what is this", "/image", "/video"])
def test_what_is_no_command_lists_the_commands(line, tiny):
    result = pvc_chat(typed=f"{line}\n")
    assert result.stdout == "" and cli.chat.COMMANDS in result.stderr


def test_files_are_named_as_in_a_shell_or_as_they_are(tiny, tmp_path):
    spaced = shutil.copy(IMAGE, tmp_path / "my picture.png")
    answer, _ = expected(tiny, "<image>\n<image>\n<image>\nWhat?", IMAGE, IMAGE, OTHER)
    typed = f"/image {spaced}\n/image '{spaced}' {OTHER}\nWhat?\n"
    assert printed(pvc_chat(typed=typed)) == words(answer)


@pytest.mark.parametrize("line", ["/image nowhere.png", "/video 'open", f"/video {__file__}"])
def test_dialogue_goes_on_after_a_file_that_cannot_be_read(line, tiny):
    answer, _ = expected(tiny, "<image>\nWhat?", IMAGE)
    result = pvc_chat("--image", IMAGE, typed=f"{line}\nWhat?\n")
    assert printed(result) == words(answer)
    assert result.stderr.count("error:") == 1 and "Traceback" not in result.stderr


def test_a_question_that_fails_leaves_the_dialogue_as_it_was_without_its_media(tiny, monkeypatch):
    first, history = expected(tiny, "What?")
    second, _ = expected(tiny, "And now?", history=history)
    monkeypatch.setattr(tiny[0].config.llm_config, "max_position_embeddings", 400)
    result = pvc_chat("--num-frames=100", typed=f"What?\n/video {VIDEO}\nToo long?\nAnd now?\n")
    assert printed(result) == words(first, second)
    assert "error: the prompt has" in result.stderr and "left out" in result.stderr


def interrupt(model, monkeypatch, after: int):
    """Makes the first answer stop as by Ctrl-C when so many tokens of it are there."""
    generate, interrupts = model.generate, [after]

    def interrupted(streamer, **inputs):
        put, left = streamer.put, interrupts.pop() + 1 if interrupts else 10**6

        def counting(values):
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            put(values)

        streamer.put = counting
        return generate(streamer=streamer, **inputs)

    monkeypatch.setattr(model, "generate", interrupted)


def test_ctrl_c_stops_the_answer_alone_and_what_came_of_it_is_kept(tiny, monkeypatch):
    model, processor = tiny
    part = model.chat(processor.tokenizer, None, "What?", SETTINGS | {"max_new_tokens": 5})
    second, _ = expected(tiny, "And now?", history=[("What?", part)])
    interrupt(model, monkeypatch, after=5)
    assert printed(pvc_chat(typed="What?\nAnd now?\n")) == words(part, second)


def test_ctrl_c_before_the_first_token_leaves_the_media_for_the_next_question(tiny, monkeypatch):
    answer, _ = expected(tiny, "<image>\nWhat?", IMAGE)
    interrupt(tiny[0], monkeypatch, after=0)
    assert printed(pvc_chat("--image", IMAGE, typed="Eh?\nWhat?\n")) == words(answer)


# ---- the model

POSITIONALS = {
    "nothing": ([], str(CHECKPOINT), None),
    "a question": (["What is this?"], str(CHECKPOINT), "What is this?"),
    "a word": (["Hello"], str(CHECKPOINT), "Hello"),
    "a slash in a sentence": (["a cat and/or a dog?"], str(CHECKPOINT), "a cat and/or a dog?"),
    "a long question": (["why " * 5000], str(CHECKPOINT), "why " * 5000),
    "a Hub id": (["org/PVC-8B.v1"], "org/PVC-8B.v1", None),
    "a folder": ([str(CHECKPOINT)], str(CHECKPOINT), None),
    "a path": (["./nowhere/model"], "./nowhere/model", None),
    "a path from home": (["~/model"], "~/model", None),
    "both": (["org/model", "What?"], "org/model", "What?"),
    "a file": ([IMAGE], IMAGE, None),
    "both, the same": (["org/model", "org/model"], "org/model", "org/model"),
}


@pytest.mark.parametrize("name", POSITIONALS)
def test_single_argument_is_the_model_or_the_question(name, tiny, monkeypatch):
    arguments, *wanted = POSITIONALS[name]
    found = []
    monkeypatch.setattr(cli.chat, "find_model", lambda name, *_: found.append(name) or str(CHECKPOINT))
    monkeypatch.setattr(cli.chat.ChatSession, "ask", lambda _, question: found.append(question))
    monkeypatch.setattr(cli.chat.ChatSession, "run", lambda _: found.append(None))
    assert pvc_chat(*arguments).exit_code == 0
    assert found == wanted


@pytest.fixture(scope="module")
def saved(loaded, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    for part in loaded:
        part.save_pretrained(folder)
    return folder


def test_saved_folder_is_loaded_by_its_own_code_as_told(saved):
    model, processor = cli.chat.load_model(str(saved), "cpu", "float16", None, "eager")
    assert {type(x).__module__.split(".")[0] for x in (model, processor)} == {"transformers_modules"}
    assert (model.dtype, model.config._attn_implementation, model.training) == (torch.float16, "eager", False)


def test_what_pvc_tiny_knows_is_told_of_it_alone(tiny, saved):
    assert NOTICE in pvc_chat("What?").stderr
    assert NOTICE not in pvc_chat(str(saved), "What?").stderr


@pytest.mark.parametrize(
    "cuda, mps, best", [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_best_device_is_chosen_where_none_is_named(cuda, mps, best, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert cli.chat.checked_device(None) == best
    assert cli.chat.checked_device("cpu") == "cpu"


def test_auto_spreads_the_model_and_answers_alike(saved):
    pytest.importorskip("accelerate")
    answers = {
        printed(pvc_chat(str(saved), "What?", "--image", IMAGE, "--device", x)) for x in ("cpu", "auto")
    }
    assert len(answers) == 1


@pytest.mark.skipif(not find_spec("bitsandbytes"), reason="bitsandbytes is not installed")
@pytest.mark.parametrize("kind, layer", [("int8", "Linear8bitLt"), ("nf4", "Linear4bit")])
def test_quantised_llm_answers(kind, layer, monkeypatch):
    loads, load = [], cli.chat.load_model
    monkeypatch.setattr(cli.chat, "load_model", lambda *options: loads.append(load(*options)) or loads[0])
    arguments = ["What is this?", "--image", IMAGE, "--device=cpu", f"--quantize={kind}"]
    assert printed(pvc_chat(*arguments))
    model = loads[0][0]
    quantised = [name for name, module in model.named_modules() if type(module).__name__ == layer]
    assert len(quantised) == 5 * model.config.llm_config.num_hidden_layers
    assert all(name.startswith("model.language_model") for name in quantised)


# ---- what is wrong is said in one line


def damaged(folder, name: str, content: bytes = b"") -> str:
    (folder / name).write_bytes(content)
    return str(folder / name)


def bomb(folder) -> list[str]:
    Image.new("1", (14000, 14000)).save(folder / "bomb.png")
    return ["What?", "--image", str(folder / "bomb.png")]


def truncated_image(folder) -> list[str]:
    with open(IMAGE, "rb") as file:
        return ["What?", "--image", damaged(folder, "half.png", file.read()[:600])]


def model_with(folder, saved, **files: bytes) -> list[str]:
    """Arguments that name a copy of the saved model in which files (their dots as _) have other contents."""
    copy = shutil.copytree(saved, folder / "model")
    for name, content in files.items():
        damaged(copy, name.replace("_", "."), content)
    return [str(copy), "What?"]


def model_without(folder, saved, name: str) -> list[str]:
    arguments = model_with(folder, saved)
    (folder / "model" / name).unlink()
    return arguments


OTHER_CONFIG = json.dumps({"model_type": "internvl_chat"}).encode()
WRONG = {
    "missing image": (lambda *_: ["What?", "--image", "no.png"], ["no such file: no.png"]),
    "missing video": (lambda *_: ["What?", "--video", "no.mp4"], ["no such file: no.mp4"]),
    "not an image": (lambda *_: ["What?", "--image", __file__], [__file__]),
    "empty image": (lambda folder, _: ["What?", "--image", damaged(folder, "x.png")], ["x.png"]),
    "half an image": (lambda folder, _: truncated_image(folder), ["half.png", "truncated"]),
    "a decompression bomb": (lambda folder, _: bomb(folder), ["bomb.png"]),
    "a folder of no images": (lambda folder, _: ["What?", "--video", str(folder)], ["{folder}"]),
    "not a video": (lambda *_: ["What?", "--video", __file__], [__file__]),
    "empty video": (lambda folder, _: ["What?", "--video", damaged(folder, "x.mp4")], ["x.mp4"]),
    "no such address": (lambda *_: ["What?", "--image", "http://127.0.0.1:9/x.png"], ["127.0.0.1:9/x.png"]),
    "image as model": (lambda *_: [IMAGE, "What?"], [IMAGE, "--image"]),
    "image with a path like a Hub id as model": (
        lambda *_: ["tests/cli/test_cli.py", "What?"],
        ["tests/cli/test_cli.py", "--image"],
    ),
    "missing folder": (lambda *_: ["./nowhere"], ["./nowhere", "expected a folder"]),
    "not on the Hub": (lambda *_: ["someone/nothing", "What?"], ["someone/nothing"]),
    "a folder of no model": (lambda folder, _: [str(folder), "What?"], ["{folder}", "model_type"]),
    "another model": (lambda f, saved: model_with(f, saved, config_json=OTHER_CONFIG), ["'internvl_chat'"]),
    "broken config": (lambda f, saved: model_with(f, saved, config_json=b"{"), ["config.json"]),
    "broken weights": (lambda f, saved: model_with(f, saved, model_safetensors=b"x" * 99), ["eader"]),
    "no weights": (lambda f, saved: model_without(f, saved, "model.safetensors"), ["model.safetensors"]),
    "no device": (lambda _, saved: [str(saved), "What?", "--device=warp"], ["--device", "'warp'"]),
    "no attention": (lambda _, saved: [str(saved), "What?", "--attn=none"], ["attn_implementation"]),
    "no frames": (lambda _, saved: [str(saved), "What?", "--video", VIDEO, "--fps=-1"], ["fps"]),
}


def assert_one_line(result, *said: str):
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = [line for line in result.stderr.splitlines() if NOTICE not in line]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    assert all(x in lines[0] for x in said), lines[0]
    assert result.stdout == ""


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_line(name, saved, tmp_path, monkeypatch):
    make, said = WRONG[name]
    monkeypatch.chdir(CHECKPOINT)
    arguments = make(tmp_path, saved)
    assert_one_line(pvc_chat(*arguments), *(x.format(folder=tmp_path) for x in said))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_missing_gpu_is_said_in_one_line():
    assert_one_line(pvc_chat("What?", "--device=cuda"), "--device", "'cuda'")


@pytest.mark.parametrize(
    "package, option, said",
    [
        ("bitsandbytes", "--quantize=int8", "pip install -U bitsandbytes"),
        ("flash_attn", "--attn=flash_attention_2", "FlashAttention2"),
    ],
)
def test_missing_package_is_said_in_one_line(package, option, said, saved):
    if find_spec(package):
        pytest.skip(f"{package} is installed")
    assert_one_line(pvc_chat(str(saved), "What?", option), said)


# ---- processes


def command(*arguments) -> list[str]:
    return [sys.executable, "-c", "from pvc.cli import app; app()", *arguments]


def test_help_and_version_do_not_import_torch():
    script = (
        "import sys\nfrom pvc.cli import app\n"
        "try: app(['chat', '--help'])\nexcept SystemExit: print({'torch', 'transformers'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert "--trust-remote-code" in done.stdout and done.stdout.endswith("set()\n")


def test_version_is_that_of_the_package():
    try:
        expected = version("pvc")
    except PackageNotFoundError:
        pytest.skip("pvc is not installed, but found by its path")
    assert CliRunner().invoke(cli.app, ["--version"]).stdout == f"pvc {expected}\n"


@pytest.mark.slow
@pytest.mark.parametrize("reply, option", [("n\n", []), ("y\n", []), ("", ["--trust-remote-code"])])
def test_code_of_a_hub_model_runs_where_it_is_trusted(reply, option, saved, tmp_path):
    repository, commit = tmp_path / "hub" / "models--someone--PVC-Test", "0123456789" * 4
    shutil.copytree(saved, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        command("chat", "someone/PVC-Test", "What?", f"--max-new-tokens={TOKENS}", *option),
        **{"input": reply, "env": environment, "capture_output": True, "text": True, "timeout": 120},
    )
    ran = any((tmp_path / "modules").rglob("modeling_pvc.py"))
    assert ("Do you wish to run the custom code?" in done.stdout) == (not option)
    assert (done.returncode, ran) == ((1, False) if reply == "n\n" else (0, True)), done.stderr
    if reply == "n\n":
        assert done.stderr.startswith("error: someone/PVC-Test has code of its own")
        assert done.stderr.count("\n") == 1


class Terminal:
    """A process that a person sees and types to."""

    def __init__(self, *arguments):
        import pty  # not on Windows

        self.pid, self.file = pty.fork()
        if self.pid == 0:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where the tests run in the background
            os.execv(sys.executable, command(*arguments))
        self.seen = ""

    def wait_for(self, text: str, seconds: float = 90):
        """Reads on until `text` was seen, and forgets what was read up to it."""
        end = time.monotonic() + seconds
        while text not in self.seen:
            ready, _, _ = select.select([self.file], [], [], max(0, end - time.monotonic()))
            assert ready, f"{text!r} did not come: {self.seen}"
            self.seen += os.read(self.file, 4096).decode(errors="replace")
        before, _, self.seen = self.seen.partition(text)
        return before

    def type(self, text: str):
        os.write(self.file, text.encode())

    def exit_code(self, seconds: float = 90) -> int:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.1)
        raise AssertionError(f"it does not end: {self.seen}")


@pytest.mark.slow
def test_a_person_at_a_terminal_can_ask_interrupt_ask_again_and_leave(saved):
    terminal = Terminal("chat", str(saved), "--max-new-tokens=900")
    try:
        terminal.wait_for("> ")
        terminal.type(f"/image {IMAGE}\r")
        terminal.wait_for("1 to be shown with the next question")
        terminal.wait_for("> ")
        terminal.type("What is this?\r")
        terminal.wait_for("Thinking")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        terminal.wait_for("> ")
        terminal.type("And now?\r")
        terminal.wait_for("Thinking")
        terminal.wait_for("> ")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
        terminal = None
    finally:
        if terminal:
            os.kill(terminal.pid, signal.SIGKILL)
