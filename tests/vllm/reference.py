"""Writes what `generate` answers, for the tests of vLLM: `python tests/vllm/reference.py FOLDER`.

Runs in the repository's own environment. FOLDER gets `reference.json` and tiny checkpoints with random
weights and other LLMs than PVC-Tiny's. Requests are OpenAI's, media in `data:` addresses.
"""

import base64
import json
import sys
from pathlib import Path

import av
import numpy as np
import torch
from transformers import AutoModel, AutoProcessor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from builders import tiny_model  # noqa: E402
from dynamic_vlm_models import small_model, small_processor  # noqa: E402
from tokenizers_of_llms import make_tokenizer  # noqa: E402

from pvc.processing_pvc import PVCImageProcessor, PVCProcessor  # noqa: E402

FRAMES = 8  # the server is told as many
NEW_TOKENS = 8
RANDOM_MODELS = {  # name: model_type of the LLM, kind of tokenizer, template
    "Qwen2": ("qwen2", "byte level", "internvl2_5"),
    "Qwen3": ("qwen3", "byte level", "internvl2_5"),
    "Phi3": ("phi3", "prefix space at the start", "phi3-chat"),
}


def address(name: str, kind: str) -> dict:
    """A block of an OpenAI message with a file of assets/ in it."""
    mime = {"image": "image/png", "video": "video/mp4"}[kind]
    content = base64.b64encode((ROOT / "assets" / name).read_bytes()).decode()
    return {"type": f"{kind}_url", f"{kind}_url": {"url": f"data:{mime};base64,{content}"}}


IMAGE, OTHER = address("picture1.png", "image"), address("picture2.png", "image")
VIDEO = address("video.mp4", "video")


def text(words: str) -> dict:
    return {"type": "text", "text": words}


def user(*blocks) -> dict:
    return {"role": "user", "content": list(blocks)}


MOVES = text("In which direction does the blue circle move?")
CASES = {
    "an image": [user(IMAGE, text("What word is written in the picture?"))],
    "an image after text": [user(text("What word is written here: "), IMAGE)],
    "two images": [
        user(text("Image-1: "), IMAGE, text("Image-2: "), OTHER, text("What word is in the first?"))
    ],
    "a video": [user(VIDEO, MOVES)],
    "a video after text": [user(MOVES, VIDEO)],
    "an image and a video": [user(IMAGE, VIDEO, MOVES)],
    "a video and an image": [user(VIDEO, text("and "), IMAGE, MOVES)],
    "text": [user(text("What is a disc?"))],
    "a system message and history": [
        {"role": "system", "content": "Answer with one word."},
        user(IMAGE, text("What word is written in the picture?")),
        {"role": "assistant", "content": "hello"},
        user(VIDEO, MOVES),
    ],
}


def save_random_model(folder: Path, llm_type: str, tokenizer_kind: str, template: str) -> None:
    """A checkpoint with random weights and four visual tokens a tile.

    vLLM's attention on a CPU wants heads of at least 32. It takes the most frequent token of a replacement
    for that of the embeddings: with one visual token a frame that may be another.
    """
    torch.manual_seed(0)
    tokenizer = make_tokenizer(tokenizer_kind)
    llm = {
        "model_type": llm_type,
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 2048,
    }
    context = tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>")
    model = tiny_model(
        vision_config={"image_size": 112},
        llm_config=llm,
        force_image_size=112,
        image_token_id=context,
        template=template,
        max_dynamic_patch=4,
    )
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    images = PVCImageProcessor.from_model_config(model.config)
    model.save_pretrained(folder)
    PVCProcessor(images, tokenizer, template=template, num_frames=FRAMES).save_pretrained(folder)


def save_dynamic_vlm(folder: Path) -> None:
    """A Dynamic-VLM with random weights, whose frames of a video have four tokens each, an image nine."""
    llm = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    llm["max_position_embeddings"] = 2048
    budget = {"max_video_tokens": 4 * FRAMES, "min_frame_tokens": 1, "max_frame_tokens": 9}
    model = small_model(llm_config=llm, **budget)
    processor = small_processor(model.config)
    model.generation_config.eos_token_id = processor.tokenizer.eos_token_id
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def with_frames(messages: list[dict]) -> list[dict]:
    """Messages with the frames that vLLM chooses: evenly spread, the first and the last among them."""
    with av.open(str(ROOT / "assets" / "video.mp4")) as file:
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)])
    chosen = frames[np.linspace(0, len(frames) - 1, FRAMES, dtype=int)]  # (FRAMES, height, width, 3)

    def shown(block: dict) -> dict:
        return {"type": "video", "video": chosen} if block["type"] == "video_url" else block

    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": [shown(block) for block in message["content"]]}
        for message in messages
    ]


@torch.no_grad()
def answers(folder: Path) -> dict[str, dict]:
    """Ids and text of each case by `generate`."""
    model = AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    found = {}
    for name, messages in CASES.items():
        inputs = processor.apply_chat_template(
            with_frames(messages), add_generation_prompt=True, tokenize=True, return_dict=True
        )
        output = model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
        new = output[0, inputs["input_ids"].shape[1] :]
        found[name] = {
            "messages": messages,
            "prompt_ids": inputs["input_ids"][0].tolist(),
            "new_ids": new.tolist(),
            "text": processor.decode(new, skip_special_tokens=True),
        }
    return found


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    models = {"PVC-Tiny": ROOT}
    for name, settings in RANDOM_MODELS.items():
        models[name] = folder / name
        save_random_model(models[name], *settings)
    models["Dynamic-VLM"] = folder / "Dynamic-VLM"
    save_dynamic_vlm(models["Dynamic-VLM"])

    reference = {
        name: {"path": str(path), "cases": answers(path), "frames": FRAMES, "new_tokens": NEW_TOKENS}
        for name, path in models.items()
    }
    (folder / "reference.json").write_text(json.dumps(reference))
    for name, model in reference.items():
        print(name, {case: found["text"] for case, found in model["cases"].items()})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
