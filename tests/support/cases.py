"""What the cases of bad inputs act on, and how they are written: a name, an action, and what must come of it.

`bad_media.py`, `bad_calls.py` and `bad_models.py` are the cases, `bad_inputs.py` makes their files,
`test_bad_inputs.py` runs them.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import NamedTuple
from unittest.mock import patch

import bad_inputs
import torch
from builders import tiny_model
from PIL import Image

from pvc import CHECKPOINT, preprocess
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer

SIDE, CONTEXT = 56, 2041  # pixels of a tile; id of <IMG_CONTEXT>
LLM = {"vocab_size": 2048, "max_position_embeddings": 256}
SETTINGS = {"max_new_tokens": 2, "do_sample": False, "suppress_tokens": [CONTEXT]}
SMALL = Image.new("RGB", (32, 24), bad_inputs.RED)


class Bench(NamedTuple):
    """What the cases act on. The model takes tiles of 56 x 56 pixels, one visual token each."""

    files: Path
    models: Path  # folders of a checkpoint, spoilt
    address: str  # of a server that has `files`
    model: PVCForConditionalGeneration
    scaled: PVCForConditionalGeneration  # its RoPE is scaled
    tokenizer: InternLM2Tokenizer
    processor: PVCProcessor


class Case(NamedTuple):
    """`act(bench, given)` raises an error whose message matches `outcome`; where `raises` is None, it gives
    `outcome`.
    """

    name: str
    act: Callable[[Bench, object], object]
    given: object
    raises: type[Exception] | tuple | None
    outcome: object


def refused(face: str, act, table: dict, raises=ValueError) -> list[Case]:
    """Cases from a table: name -> what is given, message, and where it is not `raises` the error."""
    return [
        Case(f"{face}: {name}", act, given, *(error or (raises,)), message)
        for name, (given, message, *error) in table.items()
    ]


def right(face: str, act, table: dict) -> list[Case]:
    """Cases from a table: name -> what is given, and what must come of it."""
    return [Case(f"{face}: {name}", act, given, None, outcome) for name, (given, outcome) in table.items()]


# ---- the faces


def chat(b: Bench, pixels, question="What?", settings=SETTINGS, history=None, **arguments):
    return b.model.chat(b.tokenizer, pixels, question, settings, history, **arguments)


def stream(b: Bench, pixels, question="What?", settings=SETTINGS, history=None, **arguments):
    pieces = b.model.stream_chat(b.tokenizer, pixels, question, settings, history=history, **arguments)
    return "".join(pieces).strip()


def batch(b: Bench, pixels, questions=("What?", "Why?"), **arguments):
    return b.model.batch_chat(b.tokenizer, pixels, questions, SETTINGS, **arguments)


def generate(b: Bench, input_ids=None, **arguments):
    return b.model.generate(input_ids=input_ids, max_new_tokens=1, do_sample=False, **arguments)


def template(b: Bench, conversation, **options):
    settings = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    return b.processor.apply_chat_template(conversation, **settings | options)


def message(b: Bench, *blocks: dict, role="user", **options):
    return template(b, [{"role": role, "content": list(blocks)}], **options)


def image(b: Bench, source, **options):
    """Through a message."""
    return message(b, block("image", source), **options)


def video(b: Bench, source, **options):
    """Through a message, whose block has the options."""
    return message(b, block("video", source) | options)


# ---- what they are given


def block(kind: str, source) -> dict:
    return {"type": kind, kind: source}


def tiles(count: int, height: int = SIDE, width: int = SIDE) -> torch.Tensor | None:
    generator = torch.Generator().manual_seed(count)
    return torch.randn(count, 3, height, width, generator=generator) if count else None


def ids(*row: int) -> torch.Tensor:
    return torch.tensor([row])


def places(count: int) -> torch.Tensor:
    """Ids of a prompt with places for so many visual tokens."""
    return ids(1, 5, *[CONTEXT] * count, 7)


# ---- what comes of it


def colour(pixels: torch.Tensor) -> list[float]:
    """Mean colour of tiles as 8-bit RGB."""
    mean, std = torch.tensor(preprocess.IMAGENET_MEAN), torch.tensor(preprocess.IMAGENET_STD)
    return ((pixels.mean((0, 2, 3)) * std + mean) * 255).tolist()


def greys(pixels: torch.Tensor) -> list[float]:
    return [colour(tile[None])[0] for tile in pixels]


def colours(frames: list[Image.Image]) -> list[tuple]:
    return [frame.getpixel((0, 0)) for frame in frames]


# ---- the bench


@contextmanager
def make_bench(files: Path, models: Path) -> Iterator[Bench]:
    bad_inputs.write_all(files)
    model = tiny_model(llm_config=LLM, image_token_id=CONTEXT)
    rope = {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    scaled = tiny_model(llm_config=LLM | rope, image_token_id=CONTEXT)
    tokenizer = InternLM2Tokenizer.from_pretrained(CHECKPOINT)
    processor = PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer)
    write_models(models, model, processor)
    with served(files) as address:
        yield Bench(files, models, address, model, scaled, tokenizer, processor)


def write_models(folder: Path, model: PVCForConditionalGeneration, processor: PVCProcessor):
    """Folders of a checkpoint, one good and one for each way to be no good."""
    model.save_pretrained(folder / "good")
    processor.save_pretrained(folder / "good")
    model.save_pretrained(folder / "shards", max_shard_size="300KB")

    def copy(name, source="good") -> Path:
        return Path(shutil.copytree(folder / source, folder / name))

    def cut(file: Path):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])

    (folder / "empty").mkdir()
    (copy("no_config") / "config.json").unlink()
    cut(copy("config_cut") / "config.json")
    (copy("config_of_bert") / "config.json").write_text('{"model_type": "bert"}')
    (copy("no_weights") / "model.safetensors").unlink()
    (copy("weights_empty") / "model.safetensors").write_bytes(b"")
    cut(copy("weights_cut") / "model.safetensors")
    (copy("weights_of_words") / "model.safetensors").write_text("no weights in here\n" * 50)
    config = copy("weights_of_another_size") / "config.json"
    values = json.loads(config.read_text())
    values["llm_config"]["hidden_size"] = 64
    config.write_text(json.dumps(values))
    next(copy("shard_missing", "shards").glob("model-00002-*")).unlink()
    cut(next(copy("shard_cut", "shards").glob("model-00002-*")))
    cut(copy("index_cut", "shards") / "model.safetensors.index.json")
    (copy("no_tokenizer") / "tokenizer.model").unlink()
    cut(copy("tokenizer_cut") / "tokenizer.model")
    (copy("no_processor") / "processor_config.json").unlink()


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The address of a server of the files of a folder, on this machine, reached offline too."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            file = folder / self.path.strip("/")
            content = file.read_bytes() if file.is_file() else bad_inputs.PAGE.encode()
            self.send_response(200 if file.is_file() else 404)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        with patch.dict(os.environ, HF_HUB_OFFLINE="0"):
            yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
