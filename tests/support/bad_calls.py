"""Cases of calls: tiles and what is said of them, placeholders, dialogues, messages, lengths."""

import re
from unittest.mock import patch

import torch
from cases import (
    SETTINGS,
    SIDE,
    SMALL,
    Bench,
    Case,
    batch,
    block,
    chat,
    generate,
    ids,
    message,
    places,
    refused,
    right,
    stream,
    template,
    tiles,
)

from pvc import modeling_vlm

CASES: list[Case] = []

# ---- tiles

NO_TILES = {
    "none": (torch.zeros(0, 3, SIDE, SIDE), r"pixel_values has shape \(0, 3, 56, 56\)"),
    "of integers": (
        torch.zeros(2, 3, SIDE, SIDE).byte(),
        "pixel_values is torch.uint8: expected normalised floats",
    ),
    "without the axis of tiles": (tiles(1)[0], r"shape \(3, 56, 56\), expected \(tiles, 3, H, W\)"),
    "with an axis too many": (tiles(2)[None], r"shape \(1, 2, 3, 56, 56\), expected \(tiles, 3, H, W\)"),
    "with channels last": (tiles(1).permute(0, 2, 3, 1), r"shape \(1, 56, 56, 3\), expected"),
    "of grey": (tiles(1)[:, :1], r"shape \(1, 1, 56, 56\), expected"),
    "off the patches": (tiles(1, 60, 56), r"shape \(1, 3, 60, 56\).*multiples of 14"),
    "off the blocks": (tiles(2, 70, 56), "tiles are 70x56 pixels: expected multiples of 56"),
    "without height": (tiles(1)[:, :, :0], r"shape \(1, 3, 0, 56\)"),
    "an array": (tiles(1).numpy(), "pixel_values is a ndarray: expected a tensor"),
    "a list": ([[1.0]], "pixel_values is a list: expected a tensor"),
    "an image": (SMALL, "pixel_values is a Image: expected a tensor"),
}
TILE_FACES = {
    "chat": chat,
    "stream_chat": stream,
    "batch_chat": lambda b, pixels: batch(b, pixels, num_patches_list=[1, 1]),
    "generate": lambda b, pixels: generate(b, places(4), pixel_values=pixels),
    "forward": lambda b, pixels: b.model(input_ids=places(4), pixel_values=pixels),
    "get_image_features": lambda b, pixels: b.model.get_image_features(pixels),
}
for face, act in TILE_FACES.items():
    CASES += refused(f"{face}, tiles", act, NO_TILES)


def with_value(value: float) -> torch.Tensor:
    pixels = tiles(2)
    pixels[1, 2, 3, 4] = value
    return pixels


NOT_FINITE = {
    f"{value} among them": (with_value(value), "pixel_values has values that are not finite")
    for value in (float("nan"), float("inf"), float("-inf"))
}
for face in ("chat", "stream_chat", "batch_chat", "generate"):
    CASES += refused(f"{face}, tiles", TILE_FACES[face], NOT_FINITE)
CASES += right(
    "get_image_features, tiles",
    lambda b, pixels: bool(b.model.get_image_features(pixels).last_hidden_state.isfinite().all()),
    {f"{name}, seen in what comes": (pixels, False) for name, (pixels, _) in NOT_FINITE.items()},
)

# ---- clip_grid


def grid(*rows) -> torch.Tensor:
    return torch.tensor(rows)


NO_GRIDS = {
    "of floats": (
        grid([1, 2, 4.0], [1, 2, 4.0]),
        r"clip_grid is torch.float32 \(2, 3\), expected integers \(2, 3\)",
    ),
    "of truth values": (
        grid([1, 2, 4], [1, 2, 4]).bool(),
        r"clip_grid is torch.bool \(2, 3\), expected integers",
    ),
    "a row for each clip": (grid([1, 2, 4]), r"torch.int64 \(1, 3\), expected integers \(2, 3\)"),
    "a row too many": (grid(*[[1, 1, 4]] * 3), r"\(3, 3\), expected integers \(2, 3\)"),
    "two columns": (grid([1, 2], [1, 2]), r"\(2, 2\), expected integers \(2, 3\)"),
    "one axis": (torch.ones(3).long(), r"\(3,\), expected integers \(2, 3\)"),
    "a list": ([[1, 2, 4], [1, 2, 4]], r"clip_grid is a list: expected a tensor \(2, 3\)"),
    "no frames": (grid([0, 2, 4], [0, 2, 4]), "row 0 says 0 frames of 2 tiles, 4 repeats: expected positive"),
    "no tiles": (grid([1, 0, 4], [1, 0, 4]), "row 0 says 1 frames of 0 tiles, 4 repeats: expected positive"),
    "no repeats": (
        grid([1, 2, 0], [1, 2, 0]),
        "row 0 says 1 frames of 2 tiles, 0 repeats: expected positive",
    ),
    "-1 frames": (grid([-1, -2, 4], [-1, -2, 4]), "row 0 says -1 frames of -2 tiles"),
    "more tiles than there are": (grid([1, 3, 4], [1, 3, 4]), "row 0 .* 3 such rows in a row, got"),
    "rows that differ in a clip": (grid([2, 1, 1], [2, 1, 4]), "row 0 .* 2 such rows in a row, got"),
}


def with_grid(call):
    return lambda b, clip_grid: call(b, pixel_values=tiles(2), clip_grid=clip_grid)


CASES += refused(
    "get_image_features, clip_grid", with_grid(lambda b, **x: b.model.get_image_features(**x)), NO_GRIDS
)
CASES += refused("generate, clip_grid", with_grid(lambda b, **x: generate(b, places(8), **x)), NO_GRIDS)
CASES += refused("forward, clip_grid", with_grid(lambda b, **x: b.model(input_ids=places(8), **x)), NO_GRIDS)

# ---- num_patches_list, data_flag, split_sizes


def groups(patches=None, flags=None, sizes=None) -> dict:
    given = {"num_patches_list": patches, "data_flag": flags, "split_sizes": sizes}
    return {name: value for name, value in given.items() if value is not None}


NO_GROUPS = {
    "patches too few": (groups([1, 1]), r"\[1, 1\] sums to 2, but pixel_values has 3 tiles"),
    "patches too many": (groups([4]), r"\[4\] sums to 4, but pixel_values has 3 tiles"),
    "patches of nothing": (groups([]), r"\[\] sums to 0, but pixel_values has 3 tiles"),
    "patches with a zero": (groups([2, 0, 1]), r"\[2, 0, 1\] has 0: expected at least 1 tile each"),
    "patches with -1": (groups([4, -1]), r"\[4, -1\] has -1: expected at least 1 tile each"),
    "patches in fractions": (
        groups([1.5, 1.5]),
        r"num_patches_list is \[1.5, 1.5\]: expected a list of whole",
    ),
    "patches in words": (groups(["3"]), r"num_patches_list is \['3'\]: expected a list of whole numbers"),
    "patches nested": (groups([[2], [1]]), r"num_patches_list is \[\[2\], \[1\]\]: expected a list of whole"),
    "patches a number": (groups(3), "num_patches_list is 3: expected a list of whole numbers"),
    "no flag": (groups(flags=[]), r"data_flag \[\] does not fit the 1 entries of num_patches_list \[3\]"),
    "flag 0": (groups(flags=[0]), r"data_flag has 0: expected 1 \(one image\), 2"),
    "flag 4": (groups(flags=[4]), r"data_flag has 4: expected 1 \(one image\), 2"),
    "flag -1": (groups(flags=[-1]), r"data_flag has -1: expected 1 \(one image\), 2"),
    "flag a number": (groups(flags=3), "data_flag is 3: expected a list of whole numbers"),
    "flag a tensor without axes": (
        groups(flags=torch.tensor(3)),
        r"data_flag is .*3.*: expected a list of whole",
    ),
    "flag in words": (groups(flags=["video"]), r"data_flag is \['video'\]: expected a list of whole numbers"),
    "flag in fractions": (groups(flags=[1.0]), r"data_flag is \[1.0\]: expected a list of whole numbers"),
    "a video without patches": (groups(flags=[3]), r"data_flag 3 \(video\) needs num_patches_list"),
    "a video of unequal frames": (
        groups([2, 1], [3]),
        r"equal numbers of tiles, but num_patches_list gives \[2, 1\]",
    ),
    "one image of two": (
        groups([2, 1], [1]),
        r"data_flag 1 is one image, but num_patches_list gives 2: \[2, 1\]",
    ),
    "two images of one": (groups([3], [1, 1]), r"data_flag \[1, 1\] does not fit the 1 entries"),
    "two images of three": (groups([1, 1, 1], [1, 1]), r"data_flag \[1, 1\] does not fit the 3 entries"),
    "an image and a video of one": (groups([3], [1, 3]), r"data_flag \[1, 3\] does not fit the 1 entries"),
    "two videos without sizes": (
        groups([1, 1, 1], [3, 3]),
        r"several groups of unknown length: pass split_sizes",
    ),
    "sizes more than flags": (groups([2, 1], [2], [2, 1]), "split_sizes has 2 entries, data_flag 1"),
    "sizes fewer than flags": (groups([1, 1, 1], [3, 1], [3]), "split_sizes has 1 entries, data_flag 2"),
    "sizes off the borders": (
        groups([2, 1], [1, 1], [1, 2]),
        r"\[1, 2\] does not fall on the borders of .* \[2, 1\]",
    ),
    "sizes too small": (
        groups([1, 1, 1], [3, 3], [1, 1]),
        r"\[1, 1\] sums to 2, num_patches_list \[1, 1, 1\] to 3",
    ),
    "sizes too large": (
        groups([1, 1, 1], [3, 3], [2, 2]),
        r"split_sizes \[2, 2\] does not fall on the borders",
    ),
    "sizes with a zero": (
        groups([1, 1, 1], [1, 3], [0, 3]),
        r"split_sizes \[0, 3\] does not fall on the borders",
    ),
    "sizes with -1": (
        groups([1, 1, 1], [1, 3], [-1, 4]),
        r"split_sizes \[-1, 4\] does not fall on the borders",
    ),
    "sizes a number": (groups(flags=[2], sizes=3), "split_sizes is 3: expected a list of whole numbers"),
}
CASES += refused("chat", lambda b, given: chat(b, tiles(3), **given), NO_GROUPS)
CASES += refused("stream_chat", lambda b, given: stream(b, tiles(3), **given), NO_GROUPS)
CASES += refused(
    "chat without tiles",
    lambda b, given: chat(b, None, **given),
    {
        "patches": (groups([3]), r"num_patches_list is \[3\], data_flag None, but there are no tiles"),
        "flag": (groups(flags=[1]), r"num_patches_list is None, data_flag \[1\], but there are no tiles"),
    },
)
NO_BATCHES = {
    "no patches": (groups(), r"num_patches_list \[\[\], \[\]\] sums to 0, but pixel_values has 2 tiles"),
    "patches too few": (groups([[1], []]), r"\[\[1\], \[\]\] sums to 1, but pixel_values has 2 tiles"),
    "patches of one sample": (groups([[1, 1]]), "num_patches_list has 1 entries for 2 questions"),
    "patches in fractions": (
        groups([[1], [1.0]]),
        r"num_patches_list\[1\] is \[1.0\]: expected a list of whole",
    ),
    "patches with None": (
        groups([[2], None]),
        r"num_patches_list\[1\] is None: expected a list of whole numbers",
    ),
    "patches with a zero": (groups([[1, 0], 1]), r"sample 0: num_patches_list \[1, 0\] has 0: expected"),
    "flags of one sample": (groups([1, 1], [1]), "data_flag has 1 entries for 2 questions"),
    "flag 0 where there are tiles": (
        groups([1, 1], [1, 0]),
        r"sample 1: data_flag \[\] does not fit the 1 entries",
    ),
    "flag 1 where there are none": (
        groups([2, 0], [1, 1]),
        r"sample 1: .* data_flag \[1\], but there are no tiles",
    ),
    "flag 5": (groups([1, 1], [1, 5]), "sample 1: data_flag has 5: expected 1"),
    "flag of one image for two": (groups([[1, 1], []], [1, 0]), "sample 0: data_flag 1 is one image"),
    "histories of one sample": (
        groups([1, 1]) | {"histories": [None]},
        "histories has 1 entries for 2 questions",
    ),
    "sizes of one sample": (groups([1, 1], sizes=[[1]]), "split_sizes has 1 entries for 2 questions"),
    "sizes that do not fit": (
        groups([1, 1], sizes=[[1], [2]]),
        r"sample 1: split_sizes \[2\] does not fall on",
    ),
    "a history of texts": (
        groups([1, 1]) | {"histories": [None, ["hello"]]},
        r"sample 1: history\[0\] is 'hello': expected a pair of texts",
    ),
}
CASES += refused("batch_chat", lambda b, given: batch(b, tiles(2), **given), NO_BATCHES)
CASES += refused(
    "batch_chat, questions",
    lambda b, questions: batch(b, None, questions),
    {
        "a text": ("What?", r"questions is 'What\?': expected a list of texts"),
        "none": ([], r"questions is \[\]: expected a list of texts, at least one"),
        "None among them": (["What?", None], "sample 1: the question is a NoneType: expected a text"),
    },
)
CASES += right(
    "batch_chat",
    lambda b, given: batch(b, tiles(2), **given) == [chat(b, None, "What?"), chat(b, tiles(2), "Why?")],
    {"text alone beside an image, as one by one": (groups([[], 2]), True)},
)

# ---- placeholders

FRAMES = groups([1, 1, 1], [3])
NO_PLACES = {
    "one without an image": ((0, "<image>", {}), "1 <image> placeholders in the dialogue, but 0 images"),
    "two for an image": ((1, "<image><image>", {}), "2 <image> placeholders in the dialogue, but 1 images"),
    "one for two images": (
        (2, "<image>", groups([1, 1])),
        "1 <image> placeholders in the dialogue, but 2 images",
    ),
    "one for a video": (
        (3, "<image>", FRAMES),
        "1 <image> .* but 3 images and video frames: write one <image> for each",
    ),
    "none in a later turn": (
        (1, "What?", {"history": [("Hi", "Yes")]}),
        "0 <image> placeholders .* but 1 images",
    ),
    "one in an answer": (
        (1, "What?", {"history": [("Hi", "<image>")]}),
        "0 <image> placeholders .* but 1 images",
    ),
    "one too many with history": (
        (1, "<image>", {"history": [("<image>", "A")]}),
        "2 <image> .* but 1 images",
    ),
}
CASES += refused("chat, placeholders", lambda b, x: chat(b, tiles(x[0]), x[1], **x[2]), NO_PLACES)
CASES += refused("stream_chat, placeholders", lambda b, x: stream(b, tiles(x[0]), x[1], **x[2]), NO_PLACES)
CASES += refused(
    "batch_chat, placeholders",
    lambda b, questions: batch(b, tiles(2), questions, num_patches_list=[1, 1]),
    {
        "those of the next sample": (
            ["<image><image>", "What?"],
            "sample 0: 2 <image> placeholders .* but 1 images",
        )
    },
)
NO_PROMPTS = {
    "a placeholder without an image": (
        {"text": "<image>"},
        "1 <image> placeholders in the text, but 0 given",
    ),
    "an image without a placeholder": (
        {"text": "a", "images": SMALL},
        "0 <image> placeholders .* but 1 given",
    ),
    "two images for one place": (
        {"text": "<image>", "images": [SMALL] * 2},
        "1 <image> placeholders .* but 2 given",
    ),
    "None for an image": (
        {"text": "<image>", "images": [None]},
        "1 <image> placeholders in the text, but 0 given",
    ),
    "a placeholder without a video": ({"text": "<video>"}, "1 <video> placeholders in the text, but 0 given"),
    "an image for a video": ({"text": "<video>", "images": SMALL}, "0 <image> placeholders .* but 1 given"),
    "a video for an image": (
        {"text": "<image>", "videos": [[SMALL]]},
        "1 <image> placeholders .* but 0 given",
    ),
    "images of the next prompt": (
        {"text": ["<image>", "<image><image>"], "images": [[SMALL] * 2, [SMALL]]},
        "prompt 0 has 1 <image> placeholders, but its list 2: pass one each",
    ),
    "nothing": ({}, "text is None: a prompt is needed"),
    "a video alone": ({"videos": [[SMALL]]}, "text is None: a prompt is needed"),
    "no prompts": ({"text": []}, r"text is \[\]: expected a prompt or a list of prompts"),
    "a number for a prompt": ({"text": [5]}, r"text is \[5\]: expected a prompt or a list of prompts"),
    "a message for a prompt": ({"text": [{"role": "user"}]}, "text is .*role.*: expected a prompt or a list"),
    "truncation": ({"text": "a", "truncation": True}, "truncation would cut visual tokens off"),
    "a greatest length": ({"text": "a", "max_length": 5}, "truncation would cut visual tokens off"),
    "tensors of numpy": ({"text": "a", "return_tensors": "np"}, "return_tensors: expected 'pt'"),
    "padding in the middle": (
        {"text": ["a", "b c"], "padding_side": "middle"},
        "padding_side is 'middle': expected",
    ),
}
CASES += refused("processor", lambda b, given: b.processor(**given), NO_PROMPTS)
CASES += right(
    "processor",
    lambda b, given: b.processor(images=given)["clip_grid"].tolist(),
    {"an image without a prompt": (SMALL, [[1, 13, 4]] * 13)},
)
NO_INPUTS = {
    "places too few": (
        (places(3), {"pixel_values": tiles(1)}),
        "have 3 positions for visual tokens .* make 4",
    ),
    "places too many": (
        (places(5), {"pixel_values": tiles(1)}),
        "have 5 positions for visual tokens .* make 4",
    ),
    "no places": ((ids(1, 5), {"pixel_values": tiles(1)}), "have 0 positions for visual tokens .* make 4"),
    "places without repeats": (
        (places(2), {"pixel_values": tiles(2)}),
        "have 2 positions for visual tokens .* make 8",
    ),
    "clip_grid without tiles": (
        (ids(1, 5), {"clip_grid": grid([1, 1, 4])}),
        "clip_grid .* but pixel_values is None",
    ),
    "tiles without ids": (
        (None, {"pixel_values": tiles(1), "inputs_embeds": torch.zeros(1, 4, 48)}),
        "need input_ids",
    ),
}
CASES += refused("generate", lambda b, given: generate(b, given[0], **given[1]), NO_INPUTS)
CASES += refused("forward", lambda b, given: b.model(input_ids=given[0], **given[1]), NO_INPUTS)
CASES += refused(
    "generate",
    lambda b, input_ids: generate(b, input_ids),
    {
        "places without tiles": (places(4), "have 4 positions for visual tokens, but pixel_values is None"),
        "ids beyond the vocabulary": (
            ids(1, 2048),
            "run from 1 to 2048, but the LLM's vocabulary has 2048 ids",
        ),
        "ids below zero": (ids(-100, 5), "run from -100 to 5, but the LLM's vocabulary has 2048 ids"),
        "ids of one axis": (
            torch.tensor([1, 5]),
            r"input_ids is torch.int64 \(2,\): expected a tensor of integers",
        ),
        "ids of floats": (
            torch.tensor([[1.0, 5.0]]),
            r"input_ids is torch.float32 \(1, 2\): expected a tensor",
        ),
        "ids in a list": (
            [[1, 5]],
            r"input_ids is \[\[1, 5\]\]: expected a tensor of integers \(batch, length\)",
        ),
        "no ids": (torch.ones(1, 0).long(), r"input_ids is torch.int64 \(1, 0\): expected a tensor"),
    },
)
CASES += refused(
    "forward",
    lambda b, given: b.model(**given),
    {
        "nothing": ({}, "exactly one of input_ids and inputs_embeds"),
        "ids and embeddings": (
            {"input_ids": ids(1), "inputs_embeds": torch.zeros(1, 1, 48)},
            "exactly one of input_ids and inputs_embeds",
        ),
    },
)

# ---- dialogues and messages

NO_DIALOGUES = {
    "question None": ({"question": None}, "the question is a NoneType: expected a text"),
    "question of messages": ({"question": [{"role": "user"}]}, "the question is a list: expected a text"),
    "history of texts": ({"history": ["Hi", "Hello"]}, r"history\[0\] is 'Hi': expected a pair of texts"),
    "history of messages": (
        {"history": [{"role": "user", "content": "Hi"}]},
        r"history\[0\] is \{.*: expected a pair",
    ),
    "history without an answer": (
        {"history": [("Hi",)]},
        r"history\[0\] is \('Hi',\): expected a pair of texts",
    ),
    "history with None": (
        {"history": [("Hi", "Yes"), ("So?", None)]},
        r"history\[1\] is \('So\?', None\): expected",
    ),
    "history of triples": (
        {"history": [("a", "b", "c")]},
        r"history\[0\] is \('a', 'b', 'c'\): expected a pair",
    ),
    "settings a number": (
        {"settings": 5},
        "generation_config is a int: expected a dict or a GenerationConfig",
    ),
    "settings with an unknown name": ({"settings": {"max_tokens": 5}}, "max_tokens"),
    "settings of no new tokens": ({"settings": {"max_new_tokens": 0}}, "max_new_tokens"),
}
CASES += refused("chat", lambda b, given: chat(b, None, **given), NO_DIALOGUES)
CASES += refused("stream_chat", lambda b, given: stream(b, None, **given), NO_DIALOGUES)
CASES += right(
    "stream_chat",
    lambda b, question: stream(b, None, question) == chat(b, None, question),
    {"an empty question": ("", True)},
)


def user(content) -> list[dict]:
    return [{"role": "user", "content": content}]


NO_MESSAGES = {
    "none": ([], r"conversation is \[\]: expected a list of messages, at least one"),
    "none in a batch": ([[]], r"conversation is \[\]: expected a list of messages, at least one"),
    "a text": ("What?", r"conversation is 'What\?': expected a list of messages"),
    "one, not in a list": (
        {"role": "user", "content": "a"},
        "conversation is .*: expected a list of messages",
    ),
    "None": (None, "conversation is None: expected a list of messages"),
    "a list of texts": (["What?"], r"message 0 is 'What\?': expected a dict with 'role' and 'content'"),
    "without content": ([{"role": "user"}], "message 0 is .*: expected a dict with 'role' and 'content'"),
    "without a role": ([{"content": "What?"}], "message 0 is .*: expected a dict with 'role' and 'content'"),
    "content None": (user(None), "message 0 has content None: expected a text or a list of blocks"),
    "content a number": (user(5), "message 0 has content 5: expected a text or a list of blocks"),
    "content a block": (
        user(block("image", SMALL)),
        "message 0 has content .*: expected a text or a list of blocks",
    ),
    "a text for a block": (
        user(["What?"]),
        r"message 0 has the block 'What\?': expected a dict of type text, image",
    ),
    "a block without a type": (
        user([{"text": "a"}]),
        "message 0 has the block .*text.*: expected a dict of type",
    ),
    "an unknown block": (
        user("a") + user([block("audio", "a")]),
        "message 1 has the block .*audio.*: expected a dict",
    ),
    "a text block without text": (
        user([{"type": "text"}]),
        "message 0 has the block .*: expected its text under",
    ),
    "a text block of a number": (
        user([block("text", 5)]),
        "message 0 has the block .*5.*: expected its text under",
    ),
    "an unknown role": (
        user("a") + [{"role": "tool", "content": "a"}],
        "message 1 has role 'tool': expected system",
    ),
    "a late system message": (
        user("a") + [{"role": "system", "content": "b"}],
        "message 1 has role 'system'",
    ),
}
CASES += refused("apply_chat_template, messages", template, NO_MESSAGES)
CASES += refused(
    "apply_chat_template as text, messages",
    lambda b, given: b.processor.apply_chat_template(given),
    NO_MESSAGES,
)
CASES += refused(
    "apply_chat_template, messages",
    template,
    {
        "an image block without a source": (
            user([{"type": "image"}]),
            r"an image block has keys \['type'\]: expected",
        ),
        "an image block of None": (
            user([block("image", None)]),
            r"an image block has keys .*: expected one of image",
        ),
        "a video block without a source": (
            user([{"type": "video"}]),
            r"a video block has keys \['type'\]: expected",
        ),
        "a video block of None": (
            user([block("video", None)]),
            r"a video block has keys .*: expected one of video",
        ),
        "an image in a system message": (
            [{"role": "system", "content": [block("image", SMALL)]}],
            r"message 0 has role 'system': expected system \(first, text alone\)",
        ),
    },
)


def as_openai_says(b: Bench, tokenize: bool):
    blocks = [
        {"type": "image_url", "image_url": {"url": f"{b.address}/alpha.png"}},
        {"type": "video_url", "video_url": {"url": f"{b.address}/whole.mp4"}, "num_frames": 2},
    ]
    if tokenize:
        return message(b, *blocks)["clip_grid"].tolist()
    return "<image>\n<video>\n" in b.processor.apply_chat_template(user(blocks))


CASES += right(
    "apply_chat_template, OpenAI's blocks",
    as_openai_says,
    {"as ids": (True, [[1, 13, 4]] * 13 + [[2, 1, 1]] * 2), "as text": (False, True)},
)

# ---- lengths

LONG = "word " * 300
MADE_FOR = "the LLM was made for 256 (max_position_embeddings): use fewer frames or tiles"


def too_long(tokens: str) -> str:
    return f"the prompt has {tokens} tokens, {re.escape(MADE_FOR)}"


CASES += refused(
    "longer than the context",
    lambda b, act: act(b),
    {
        "chat, text": (lambda b: chat(b, None, LONG), too_long(r"\d{3,4}")),
        "chat, tiles": (lambda b: chat(b, tiles(80)), too_long(r"[34]\d\d")),
        "stream_chat": (lambda b: stream(b, None, LONG), too_long(r"\d{3,4}")),
        "batch_chat": (lambda b: batch(b, None, ["a", LONG]), too_long(r"\d{3,4}")),
        "generate, ids": (lambda b: generate(b, ids(*[5] * 257)), too_long("257")),
        "generate, embeddings": (
            lambda b: generate(b, inputs_embeds=torch.zeros(1, 300, 48)),
            too_long("300"),
        ),
    },
)


def warnings_of(b: Bench, question: str) -> list[str]:
    """What a model whose RoPE is scaled warns of, but for the numbers."""
    said = []
    with patch.object(modeling_vlm.logger, "warning_once", said.append):
        b.scaled.chat(b.tokenizer, None, question, SETTINGS)
    return [text.split(" tokens, ")[1] for text in said]


CASES += right(
    "chat where RoPE is scaled",
    warnings_of,
    {
        "longer than the context, one warning": (
            LONG,
            [MADE_FOR + ", or expect answers to suffer; RoPE is scaled"],
        ),
        "short, no warning": ("What?", []),
    },
)
