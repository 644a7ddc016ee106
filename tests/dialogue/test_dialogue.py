"""`batch_chat` and `stream_chat` answer as `chat` does; calls written for older releases still work."""

import copy
import importlib.util
import itertools
import json
import logging
import threading
from contextlib import contextmanager

import pytest
import torch
from builders import FITS_TOKENIZER, golden, tiny_model
from tokenizers_of_llms import make_tokenizer
from transformers import AutoModel, GenerationConfig, PreTrainedModel, TextStreamer, pipeline
from watching import record_calls

from pvc import CHECKPOINT, loading, modeling_vlm
from pvc.loading import quantization_config
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor

OFFICIAL = json.loads(golden("chat_queries.json").read_text(encoding="utf-8"))
END, CONTEXT = 2037, 2041  # <|im_end|>, <IMG_CONTEXT>
SETTINGS = {"max_new_tokens": 5, "do_sample": False}
VIDEO_LINES = "Frame1: <image>\nFrame2: <image>\n"

# name: question, history, and what its media are
SAMPLES = {
    "text": ("What?", None, {}),
    "an image": ("<image>\nWhat is it?", None, {"num_patches_list": [3], "data_flag": [1]}),
    "an image, nothing said": ("What is it?", None, {"num_patches_list": [2]}),
    "images": ("One <image> two <image> which?", None, {"num_patches_list": [2, 1], "data_flag": [2]}),
    "a video": (VIDEO_LINES + "What happens?", None, {"num_patches_list": [1, 1], "data_flag": [3]}),
    "a video of two tiles a frame": ("When?", None, {"num_patches_list": [2, 2], "data_flag": [3]}),
    "text after text": ("Sure?", [("What?", "That."), ("<|im_end|>", "<image>")], {}),
    "text after an image": (
        "Sure?",
        [("<image>\nWhat?", "A disc.")],
        {"num_patches_list": [2], "data_flag": [1]},
    ),
    "a video after an image": (
        VIDEO_LINES + "And there?",
        [("<image>\nWhat?", "A disc."), ("Sure?", "Yes.")],
        {"num_patches_list": [2, 1, 1], "data_flag": [1, 3]},
    ),
    "two videos": (
        "Which?",
        None,
        {"num_patches_list": [1, 1, 2, 2], "data_flag": [3, 3], "split_sizes": [2, 4]},
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer("InternLM2")


@pytest.fixture
def calls(model, monkeypatch) -> list[dict]:
    return record_calls(model, monkeypatch)


def tiles_of(name: str) -> torch.Tensor | None:
    """Tiles of a sample, different for each."""
    count = sum(SAMPLES[name][2].get("num_patches_list", []))
    generator = torch.Generator().manual_seed(list(SAMPLES).index(name))
    return torch.randn(count, 3, 56, 56, generator=generator) if count else None


def ask(model, tokenizer, name: str, settings=SETTINGS, **options):
    question, history, media = SAMPLES[name]
    return model.chat(tokenizer, tiles_of(name), question, settings, history, **media, **options)


def ask_all(model, tokenizer, names, settings=SETTINGS, **options):
    tiles = [tiles for tiles in map(tiles_of, names) if tiles is not None]
    questions, histories, media = zip(*(SAMPLES[name] for name in names))
    flags = [each.get("data_flag", [2] if each else 0) for each in media]
    return model.batch_chat(
        tokenizer,
        torch.cat(tiles) if tiles else None,
        list(questions),
        settings,
        num_patches_list=[each.get("num_patches_list", []) for each in media],
        data_flag=flags,
        histories=list(histories),
        split_sizes=[each.get("split_sizes") for each in media],
        **options,
    )


@pytest.fixture(scope="module")
def answers(model, tokenizer) -> dict[str, str]:
    """What `chat` answers to each sample."""
    found = {name: ask(model, tokenizer, name) for name in SAMPLES}
    assert len(set(found.values())) == len(found)  # so that a mix-up would be seen
    return found


# ---- batches


MIXES = [
    list(SAMPLES),
    list(SAMPLES)[::-1],
    ["text"],
    ["text", "text after text"],
    ["a video"],
    ["an image", "an image"],
    *map(list, itertools.islice(itertools.permutations(SAMPLES, 3), 0, None, 73)),
]


@pytest.mark.parametrize("names", MIXES, ids=" + ".join)
def test_a_batch_is_answered_as_its_samples_alone(names, model, tokenizer, answers, calls):
    assert ask_all(model, tokenizer, names) == [answers[name] for name in names]
    assert len(calls) == 1


def test_each_sample_of_a_batch_reaches_the_model_as_alone(model, tokenizer, calls):
    ask_all(model, tokenizer, list(SAMPLES))
    for name in SAMPLES:
        ask(model, tokenizer, name)
    batch, *singles = calls
    for ids, mask, single in zip(batch["input_ids"], batch["attention_mask"], singles, strict=True):
        expected = single["input_ids"][0]
        gap = len(ids) - len(expected)
        assert mask.tolist() == [0] * gap + [1] * len(expected)
        assert torch.equal(ids[gap:], expected)
    for name in ("pixel_values", "clip_grid"):
        parts = [single[name] for single in singles if single[name] is not None]
        assert torch.equal(batch[name], torch.cat(parts))


def test_released_call_of_batch_chat(model, tokenizer, calls):
    pixels, settings = torch.cat([tiles_of("an image")[:1], tiles_of("images")[:2]]), dict(SETTINGS)
    questions = ["<image>\nDescribe the image.", "<image>\nDescribe it."]
    answers = model.batch_chat(
        tokenizer,
        pixels,
        num_patches_list=[1, 2],
        questions=questions,
        generation_config=settings,
    )
    assert answers == [
        model.chat(tokenizer, pixels[:1], questions[0], SETTINGS),
        model.chat(tokenizer, pixels[1:], questions[1], SETTINGS),
    ]
    assert settings == SETTINGS
    assert calls[0]["clip_grid"].tolist() == [[1, 1, 4]] + [[1, 2, 4]] * 2


@pytest.mark.parametrize("case", OFFICIAL["batch_chat"], ids=lambda case: case["template"])
def test_official_batches_give_the_ids_of_the_official_queries(case, tokenizer, monkeypatch):
    official = tiny_model(**FITS_TOKENIZER, template=case["template"], image_repeats=1)
    calls = record_calls(official, monkeypatch)
    pixels = torch.zeros(sum(case["num_patches_list"]), 3, 112, 112)  # 4 visual tokens a tile, as there
    official.batch_chat(
        tokenizer, pixels, case["questions"], {"max_new_tokens": 1}, num_patches_list=case["num_patches_list"]
    )
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(calls[0]["input_ids"], calls[0]["attention_mask"])]
    assert rows == [tokenizer(query).input_ids for query in case["queries"]]


@pytest.mark.parametrize("as_given", [list, tuple, torch.tensor], ids=["list", "tuple", "tensor"])
def test_media_of_a_batch_may_be_said_in_numbers(as_given, model, tokenizer, calls):
    pixels = torch.cat([tiles_of("an image"), tiles_of("a video")])
    questions = ["What?", "What happens?", "Why?"]
    model.batch_chat(tokenizer, pixels, questions, SETTINGS, [3, [1, 1], 0], as_given([1, 3, 0]))
    model.batch_chat(tokenizer, pixels, questions, SETTINGS, [[3], [1, 1], []], [[1], [3], []])
    assert calls[0]["clip_grid"].tolist() == [[1, 3, 4]] * 3 + [[2, 1, 1]] * 2
    for name in ("input_ids", "attention_mask", "clip_grid"):
        assert torch.equal(calls[0][name], calls[1][name])


def test_text_alone_needs_no_lists(model, tokenizer):
    questions = ["What?", "What is the meaning of it all?"]
    answers = model.batch_chat(tokenizer, None, questions, SETTINGS)
    assert answers == [model.chat(tokenizer, None, question, SETTINGS) for question in questions]


def test_histories_are_returned_longer_and_left_unchanged(model, tokenizer, answers):
    names = list(SAMPLES)
    kept = copy.deepcopy(SAMPLES)
    returned, histories = ask_all(model, tokenizer, names, return_history=True)
    assert returned == [answers[name] for name in names]
    assert kept == SAMPLES
    for name, history in zip(names, histories, strict=True):
        assert history == ask(model, tokenizer, name, return_history=True)[1]
        assert history[:-1] == (SAMPLES[name][1] or [])
        assert history is not SAMPLES[name][1]


def test_best_of_several_sequences_is_the_answer(model, tokenizer, answers):
    several = SETTINGS | {"num_beams": 3, "num_return_sequences": 3}
    one = SETTINGS | {"num_beams": 3}
    names = ["text", "an image", "a video"]
    expected = [ask(model, tokenizer, name, one) for name in names]
    assert ask_all(model, tokenizer, names, several) == expected
    assert ask(model, tokenizer, "an image", several) == expected[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"questions": ["a", "<image> b"]}, "^sample 1: 1 <image> placeholders .* but 0 images"),
        ({"num_patches_list": [[2], [1]], "data_flag": [0, 1]}, r"^sample 0: .*\[2\]"),
        ({"num_patches_list": [[1], [2]], "data_flag": [1, 0]}, r"^sample 1: .*\[2\]"),
        ({"num_patches_list": [[2], [1]], "data_flag": [4, 1]}, "^sample 0: data_flag has 4"),
        ({"num_patches_list": [[1], [1, 1]], "data_flag": [1, 1]}, "^sample 1: data_flag 1 is one image"),
        ({"num_patches_list": [[2, 1], []], "data_flag": [3, 0]}, "^sample 0: the frames of a video"),
        ({"num_patches_list": [[3], []], "data_flag": [1, 3]}, "^sample 1: num_patches_list is .* no tiles"),
        ({"num_patches_list": [[1], [1]]}, r"\[\[1\], \[1\]\] sums to 2, but pixel_values has 3 tiles"),
        ({"num_patches_list": None}, "sums to 0, but pixel_values has 3 tiles"),
        ({"num_patches_list": [3]}, "num_patches_list has 1 entries for 2 questions"),
        ({"data_flag": [1]}, "data_flag has 1 entries for 2 questions"),
        ({"histories": [None] * 3}, "histories has 3 entries for 2 questions"),
        ({"split_sizes": [[3]]}, "split_sizes has 1 entries for 2 questions"),
    ],
)
def test_contradictions_in_a_batch_are_errors_that_name_the_sample(
    arguments, message, model, tokenizer, calls
):
    given = {"questions": ["a", "b"], "num_patches_list": [[1], [2]]} | arguments
    pixels = torch.zeros(3, 3, 56, 56)
    if arguments.keys() == {"questions"}:
        given["num_patches_list"] = [[3], []]
    with pytest.raises(ValueError, match=message):
        model.batch_chat(tokenizer, pixels, generation_config=SETTINGS, **given)
    assert calls == []


@pytest.mark.parametrize("questions", [[], "What?"])
def test_questions_must_be_a_list_with_something_in_it(questions, model, tokenizer, calls):
    with pytest.raises(ValueError, match="questions"):
        model.batch_chat(tokenizer, None, questions, SETTINGS)
    assert calls == []


# ---- a dialogue


def test_a_dialogue_in_which_a_later_turn_brings_a_video(model, tokenizer, calls):
    image, frames = tiles_of("an image"), tiles_of("a video")
    first, history = model.chat(tokenizer, image, "What?", SETTINGS, return_history=True)
    second, history = model.chat(
        tokenizer,
        torch.cat([image, frames]),
        VIDEO_LINES + "And here?",
        SETTINGS,
        history=history,
        return_history=True,
        num_patches_list=[3, 1, 1],
        data_flag=[1, 3],
    )
    third = model.chat(
        tokenizer,
        torch.cat([image, frames]),
        "Sure?",
        SETTINGS,
        history=history,
        num_patches_list=[3, 1, 1],
        data_flag=torch.tensor([1, 3]),
    )
    assert history == [("<image>\nWhat?", first), (VIDEO_LINES + "And here?", second)]
    assert isinstance(third, str)
    grids = [call["clip_grid"].tolist() for call in calls]
    assert grids == [[[1, 3, 4]] * 3, *[[[1, 3, 4]] * 3 + [[2, 1, 1]] * 2] * 2]
    dialogue = calls[2]["input_ids"][0].tolist()
    for earlier in calls[:2]:
        asked = earlier["input_ids"][0].tolist()
        assert dialogue[: len(asked)] == asked  # media stay where they were asked about
    assert dialogue.count(CONTEXT) == 3 * 4 + 2


# ---- streaming


@pytest.mark.parametrize("name", SAMPLES)
def test_pieces_together_are_the_answer_of_chat(name, model, tokenizer, answers):
    question, history, media = SAMPLES[name]
    stream = model.stream_chat(tokenizer, tiles_of(name), question, dict(SETTINGS), history=history, **media)
    assert "".join(stream) == answers[name]


def test_sampling_under_a_seed_is_the_same_streamed_and_whole(model, tokenizer):
    settings = {"max_new_tokens": 12, "do_sample": True, "temperature": 1.5, "top_p": 0.95}
    question, history, media = SAMPLES["an image"]
    torch.manual_seed(1)
    whole = ask(model, tokenizer, "an image", settings)
    torch.manual_seed(1)
    stream = model.stream_chat(tokenizer, tiles_of("an image"), question, settings, **media)
    assert "".join(stream) == whole
    torch.manual_seed(2)
    assert ask(model, tokenizer, "an image", settings) != whole
    assert ask(model, tokenizer, "an image", {"max_new_tokens": 12, "do_sample": False}) != whole


@contextmanager
def saying(model, ids: list[int]):
    """Makes the model say `ids`, whatever it is asked; yields the list of its steps."""
    steps = []

    def force(head, args, logits):
        logits[...] = -1e9
        logits[..., ids[min(len(steps), len(ids) - 1)]] = 0
        steps.append(1)

    hook = model.lm_head.register_forward_hook(force)
    try:
        yield steps
    finally:
        hook.remove()


@pytest.mark.parametrize(
    "text", ["  A cat.\n\n And  a dog. \n", "👩‍👩‍👧 图片 e\u0301", "\n", "<|im_end|> typed"]
)
def test_pieces_are_those_of_chat_whatever_is_said(text, model, tokenizer):
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
    settings = {"max_new_tokens": 64, "do_sample": False}
    found = []
    for run in (model.chat, lambda *arguments: "".join(model.stream_chat(*arguments))):
        with saying(model, [*ids, END]):
            found.append(run(tokenizer, None, "What?", settings))
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("kind", "template", "end"),
    [
        ("InternLM2", "internlm2-chat", "<|im_end|>"),
        ("InternLM2", "internvl_zh", "</s>"),
        ("byte level", "Hermes-2", "<|im_end|>"),
        ("byte level", "Hermes-2", "<|endoftext|>"),
        ("byte level", "internvl2_5", "<|im_end|>"),
        ("prefix space everywhere", "phi3-chat", "<|end|>"),
    ],
)
@pytest.mark.parametrize("as_object", [False, True], ids=["dict", "object"])
def test_generation_stops_at_each_of_the_templates_own_end_tokens(kind, template, end, as_object):
    tokenizer = make_tokenizer(kind)
    model = tiny_model(
        llm_config={"vocab_size": len(tokenizer), "eos_token_id": None},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        template=template,
    )
    model.generation_config.eos_token_id = None
    said = tokenizer("the end", add_special_tokens=False).input_ids
    settings = {"max_new_tokens": 40, "do_sample": False}
    given = GenerationConfig(**settings) if as_object else dict(settings)
    kept, own = copy.deepcopy(given), copy.deepcopy(model.generation_config)
    for run in (
        lambda *arguments: model.chat(*arguments),
        lambda *arguments: "".join(model.stream_chat(*arguments)),
        lambda tokenizer, pixels, question, settings: model.batch_chat(
            tokenizer, pixels, [question, "Why on earth?"], settings
        )[1],
    ):
        with saying(model, [*said, tokenizer.convert_tokens_to_ids(end)]) as steps:
            answer = run(tokenizer, None, "What?", given)
        assert answer == "the end"
        assert len(steps) == len(said) + 1
    assert given == kept
    assert model.generation_config == own


def test_settings_of_sampling_are_left_unchanged(model, tokenizer):
    settings = {"max_new_tokens": 3, "do_sample": True, "temperature": 0.7, "top_k": 5}
    own = copy.deepcopy(model.generation_config)
    for given in (dict(settings), GenerationConfig(**settings)):
        kept = copy.deepcopy(given)
        list(model.stream_chat(tokenizer, None, "What?", given))
        model.batch_chat(tokenizer, None, ["What?", "Why?"], given)
        assert given == kept
    assert model.generation_config == own


def test_an_error_of_the_thread_is_raised_where_the_answer_is_read(model, tokenizer):
    with pytest.raises(ValueError, match="1 <image> placeholders in the dialogue, but 0 images"):
        list(model.stream_chat(tokenizer, None, "<image>"))

    class Broken(Exception):
        pass

    def break_at_the_third_step(head, args, logits):
        steps.append(1)
        if len(steps) == 3:
            raise Broken("at the third step")

    steps, pieces = [], []
    hook = model.lm_head.register_forward_hook(break_at_the_third_step)
    with pytest.raises(Broken, match="at the third step"):
        for piece in model.stream_chat(tokenizer, None, "What?", SETTINGS):
            pieces.append(piece)
    hook.remove()
    assert len(steps) == 3
    assert "".join(pieces).strip()  # what came before


def test_leaving_the_loop_early_stops_the_model(model, tokenizer):
    said = tokenizer("the end and so on, " * 40, add_special_tokens=False).input_ids
    before = threading.active_count()
    with saying(model, said) as steps:
        stream = model.stream_chat(tokenizer, None, "What?", {"max_new_tokens": 400, "do_sample": False})
        assert next(stream).strip()
        stream.close()
        assert len(steps) < 200
        assert threading.active_count() == before  # the thread has ended: no step comes after


def test_nothing_runs_before_the_answer_is_read(model, tokenizer):
    before = threading.active_count()
    with saying(model, [END]) as steps:
        stream = model.stream_chat(tokenizer, None, "What?", SETTINGS)
        assert (threading.active_count(), steps) == (before, [])
        assert "".join(stream) == ""
        assert len(steps) == 1


def test_streamers_of_transformers_print_the_answer(model, tokenizer, answers, capsys):
    streamer = TextStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    assert ask(model, tokenizer, "an image", streamer=streamer) == answers["an image"]
    assert capsys.readouterr().out.strip() == answers["an image"]


# ---- prompts longer than the LLM was made for


@pytest.fixture
def warnings():
    """What loading and generation log."""

    class Keep(logging.Handler):
        def __init__(self):
            super().__init__()
            self.said = []

        def emit(self, record):
            self.said.append(record.getMessage())

    handler, loggers = Keep(), (loading.logger, modeling_vlm.logger)
    for logger in loggers:
        logger.addHandler(handler)
    yield handler.said
    for logger in loggers:
        logger.removeHandler(handler)


ROPE = {"rope_theta": 1e6, "rope_type": "default"}


@pytest.mark.parametrize("llm", [{}, {"model_type": "qwen2"}], ids=["InternLM2", "Qwen2"])
def test_a_prompt_too_long_is_an_error_with_both_lengths(llm, tokenizer):
    sizes = {"vocab_size": 2048, "max_position_embeddings": 64, "rope_parameters": ROPE}
    model = tiny_model(image_token_id=CONTEXT, llm_config=sizes | llm)
    long = "the end " * 50
    tokens = len(tokenizer(long, add_special_tokens=False).input_ids)
    assert tokens > 64
    with pytest.raises(ValueError, match=r"the prompt has \d+ tokens, the LLM was made for 64") as raised:
        model.chat(tokenizer, None, long, SETTINGS)
    assert int(str(raised.value).split()[3]) > tokens
    with pytest.raises(ValueError, match="the LLM was made for 64"):
        model.batch_chat(tokenizer, None, ["What?", long], SETTINGS)
    with pytest.raises(ValueError, match="the LLM was made for 64"):
        list(model.stream_chat(tokenizer, None, long, SETTINGS))
    with pytest.raises(ValueError, match="the LLM was made for 64"):  # visual tokens count
        model.chat(tokenizer, torch.zeros(20, 3, 56, 56), "?", SETTINGS)


def test_only_a_longer_prompt_is_too_long(tokenizer, monkeypatch):
    sizes = {"vocab_size": 2048, "rope_parameters": ROPE}
    model = tiny_model(image_token_id=CONTEXT, llm_config=sizes | {"max_position_embeddings": 4096})
    calls = record_calls(model, monkeypatch)
    model.chat(tokenizer, None, "What?", SETTINGS)
    length = calls[0]["input_ids"].shape[1]
    model.config.llm_config.max_position_embeddings = length
    model.chat(tokenizer, None, "What?", SETTINGS)
    model.config.llm_config.max_position_embeddings = length - 1
    message = f"the prompt has {length} tokens, the LLM was made for {length - 1}"
    with pytest.raises(ValueError, match=message):
        model.chat(tokenizer, None, "What?", SETTINGS)


def test_a_prompt_too_long_is_answered_with_one_warning_where_rope_is_scaled(tokenizer, warnings):
    rope = ROPE | {"rope_type": "dynamic", "factor": 2.0}
    sizes = {"vocab_size": 2048, "max_position_embeddings": 61, "rope_parameters": rope}
    model = tiny_model(image_token_id=CONTEXT, llm_config=sizes)
    for _ in range(2):
        assert isinstance(model.chat(tokenizer, None, "the end " * 50, SETTINGS), str)
    (said,) = warnings
    assert "tokens, the LLM was made for 61" in said


# ---- arguments of from_pretrained of older releases


LOADERS = {
    "package": PVCForConditionalGeneration.from_pretrained,
    "remote code": lambda *args, **kwargs: AutoModel.from_pretrained(*args, trust_remote_code=True, **kwargs),
}


@pytest.fixture(params=LOADERS)
def load(request):
    return LOADERS[request.param]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    tiny_model(**FITS_TOKENIZER).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("flash", [True, False])
def test_released_arguments_of_from_pretrained_work(flash, dtype, load, saved, tokenizer):
    model = load(
        saved,
        torch_dtype=dtype,
        low_cpu_mem_usage=True,
        use_flash_attn=flash,
        load_in_8bit=False,
        load_in_4bit=False,
    ).eval()
    assert model.dtype == dtype
    assert getattr(model, "quantization_method", None) is None
    for config in (model.config, model.config.llm_config, model.config.vision_config):
        assert config._attn_implementation == "sdpa"  # flash-attn is not installed, or not asked for
        assert not hasattr(config, "use_flash_attn") and not hasattr(config, "load_in_8bit")
    assert isinstance(model.chat(tokenizer, tiles_of("an image").to(dtype), "What?", SETTINGS), str)


@pytest.fixture
def handed_on(monkeypatch) -> list[dict]:
    """What transformers' own `from_pretrained` is given, which then loads nothing."""
    handed = []

    class Asked(Exception):
        pass

    def keep(cls, *args, **kwargs):
        handed.append(kwargs)
        raise Asked

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(keep))
    handed.append(Asked)
    return handed


def arguments_of(handed_on, load, *args, **kwargs) -> dict:
    with pytest.raises(handed_on[0]):
        load(*args, **kwargs)
    return handed_on[-1]


@pytest.mark.parametrize("bits", [8, 4])
def test_load_in_8bit_and_4bit_quantise_the_llm_alone(bits, load, saved, handed_on):
    arguments = arguments_of(handed_on, load, saved, **{f"load_in_{bits}bit": True})
    assert not {"load_in_8bit", "load_in_4bit", "use_flash_attn"} & arguments.keys()
    config = arguments["quantization_config"]
    assert (config.load_in_8bit, config.load_in_4bit) == (bits == 8, bits == 4)
    parts = {"model.vision_model", "model.compressor", "model.projector", "lm_head"}
    assert set(config.llm_int8_skip_modules) == parts
    if bits == 4:
        assert (config.bnb_4bit_quant_type, config.bnb_4bit_compute_dtype) == ("nf4", torch.bfloat16)


def test_what_is_said_in_todays_words_wins_over_old_ones(saved, handed_on):
    load = LOADERS["package"]
    mine = quantization_config("nf4")
    arguments = arguments_of(handed_on, load, saved, load_in_8bit=True, quantization_config=mine)
    assert arguments["quantization_config"].to_dict() == mine.to_dict()
    arguments = arguments_of(handed_on, load, saved, use_flash_attn=True, attn_implementation="eager")
    assert arguments["attn_implementation"] == "eager"
    arguments = arguments_of(handed_on, load, saved)
    assert not {"quantization_config", "attn_implementation"} & arguments.keys()


def test_use_flash_attn_is_flash_attention_2_where_it_is_installed(saved, handed_on, monkeypatch):
    load = LOADERS["package"]
    for installed in (True, False):
        monkeypatch.setattr(loading, "is_flash_attn_2_available", lambda found=installed: found)
        arguments = arguments_of(handed_on, load, saved, use_flash_attn=True)
        assert arguments.get("attn_implementation") == ("flash_attention_2" if installed else None)


def test_unknown_quantisation_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match="'int4': expected 'int8' or 'nf4'"):
        quantization_config("int4")


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_chat_batch_and_pipeline_of_pvc_tiny_in_int8(tokenizer):
    model = PVCForConditionalGeneration.from_pretrained(CHECKPOINT, load_in_8bit=True).eval()
    kinds = {name: type(module).__name__ for name, module in model.named_modules()}
    linear = {name for name, kind in kinds.items() if kind.startswith("Linear")}
    assert {kinds[name] for name in linear if "language_model" in name} == {"Linear8bitLt"}
    assert {kinds[name] for name in linear if "language_model" not in name} == {"Linear"}

    pixels = torch.randn(3, 3, 112, 112, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    settings = {"max_new_tokens": 4, "do_sample": False}
    whole = PVCForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    single = model.chat(tokenizer, pixels, "What?", settings)
    questions, patches = ["What?", "Why?"], [[1, 1, 1], []]
    answers = model.batch_chat(tokenizer, pixels, questions, settings, patches, data_flag=[3, 0])
    assert all(isinstance(answer, str) for answer in (single, *answers))
    ids = torch.arange(3, 40)[None]
    exact, rough = whole(input_ids=ids).logits, model(input_ids=ids).logits
    assert 0 < (exact - rough).abs().max() < 0.1 * exact.abs().max()

    processor = PVCProcessor(PVCImageProcessor.from_model_config(model.config), tokenizer)
    ask = pipeline("image-text-to-text", model=model, processor=processor)
    messages = [{"role": "user", "content": [{"type": "text", "text": "What?"}]}]
    (answer,) = ask(text=messages, return_full_text=False, **settings)
    assert isinstance(answer["generated_text"], str)


@pytest.mark.parametrize("size", [1, 2, 3])
def test_batches_of_like_length_give_the_answers_of_one_batch_with_less_padding(
    size, model, tokenizer, calls
):
    questions = ["What is it? " * 9, "Who?", "Where is the red one of the two? " * 3, "Why?"]
    arguments = (
        tokenizer,
        torch.randn(6, 3, 56, 56),
        questions,
        SETTINGS,
        [1, [1, 1, 1], 0, 2],
        [1, 3, 0, 1],
    )
    expected = model.batch_chat(*arguments)
    padding = [int((call["attention_mask"] == 0).sum()) for call in calls]
    calls.clear()

    assert model.batch_chat(*arguments, batch_size=size) == expected
    assert sum(int((call["attention_mask"] == 0).sum()) for call in calls) < padding[0]
    assert max(len(call["input_ids"]) for call in calls) == size
    with pytest.raises(ValueError, match="batch_size is 0: expected at least 1"):
        model.batch_chat(*arguments, batch_size=0)
