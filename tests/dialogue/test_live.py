"""Live video: what comes frame by frame is what the whole clip would give, and questions cost their text."""

from functools import partial
from threading import Thread

import pytest
import torch
from builders import FITS_TOKENIZER, tiny_model
from test_chat import CONTEXT, SETTINGS
from torch.testing import assert_close
from watching import interrupted, record_calls, watched

from pvc import CHECKPOINT
from pvc.live_video import LiveVideo
from pvc.preprocess import load_video, load_video_ahead

WINDOW, TEMPORAL_LAYERS = 3, 2
ENDLESS_LLM = FITS_TOKENIZER["llm_config"] | {"max_position_embeddings": 128, "rope_parameters": None}


def frames(count: int, tiles: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(count * tiles, 3, 56, 56, generator=torch.Generator().manual_seed(seed))


def whole(model, pixels: torch.Tensor, count: int, tiles: int = 1) -> torch.Tensor:
    """Visual tokens `(frames, tokens, H)` of a clip encoded at once."""
    grid = torch.tensor([[count, tiles, model.config.video_repeats]]).repeat(len(pixels), 1)
    with torch.no_grad():
        (tokens,) = model.get_image_features(pixels, grid).pooler_output
    return tokens.unflatten(0, (count, -1))


def in_pieces(live: LiveVideo, pixels: torch.Tensor, pieces: list[int], tiles: int = 1) -> torch.Tensor:
    parts = pixels.split([piece * tiles for piece in pieces])
    return torch.cat([live.add(part, [tiles] * (len(part) // tiles)) for part in parts])


def assert_same(tokens: torch.Tensor, expected: torch.Tensor, relative: float = 1e-5):
    assert_close(tokens, expected, rtol=relative, atol=relative * float(expected.abs().max()))


# ---- visual tokens

PIECES = {"one by one": [1] * 7, "mixed": [1, 3, 1, 2], "at once": [7], "most at first": [6, 1]}


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("tiles", "repeats"), [(1, 1), (3, 1), (2, 2)])
def test_frames_that_come_in_pieces_have_the_tokens_of_the_whole_clip(tiles, repeats, attention, pieces):
    model = tiny_model(video_repeats=repeats, attn_implementation=attention)
    pixels = frames(7, tiles)
    tokens = in_pieces(LiveVideo(model, None, horizon=7), pixels, PIECES[pieces], tiles)
    assert_same(tokens, whole(model, pixels, 7, tiles))


def test_a_file_that_is_read_while_it_is_encoded_has_the_tokens_of_the_whole_clip(model):
    settings = {"input_size": 56, "num_segments": 6}
    file = CHECKPOINT / "assets" / "video.mp4"
    tokens = LiveVideo(model, None, horizon=6).watch(load_video_ahead(file, **settings, frames_at_once=4))
    assert_same(tokens, whole(model, load_video(file, **settings)[0], 6))


OTHER_MODELS = {
    "passes of two tiles": {"max_encoder_tiles": 2},
    "no limit of a pass": {"max_encoder_tiles": None},
    "no temporal layers": {"vision_config": {"num_temporal_layers": 0}},
    "the last temporal layer left out": {"select_layer": -2},
    "every layer temporal": {"vision_config": {"num_temporal_layers": 4}},
    "plain LayerNorm in the projector": {"adaptive_compression": False},
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_pieces_equal_the_whole_in_models_of_other_shapes(name):
    model, pixels = tiny_model(**OTHER_MODELS[name]), frames(6, tiles=2)
    live = LiveVideo(model, None, horizon=6)
    assert_same(in_pieces(live, pixels, [4, 1, 1], tiles=2), whole(model, pixels, 6, tiles=2))


@pytest.mark.parametrize(("tiles", "repeats"), [(1, 1), (3, 2)])
def test_a_clip_of_one_frame_has_the_tokens_of_that_image(tiles, repeats):
    model, pixels = tiny_model(video_repeats=repeats), frames(1, tiles)
    live = LiveVideo(model, None, horizon=1)
    assert_same(in_pieces(live, pixels, [1], tiles), whole(model, pixels, 1, tiles))


def test_bfloat16_stays_so_and_is_near_the_whole_clip():
    model, pixels = tiny_model().bfloat16(), frames(5)
    tokens = in_pieces(LiveVideo(model, None, horizon=5), pixels, [1, 2, 2])
    assert tokens.dtype == torch.bfloat16
    assert_same(tokens.float(), whole(model, pixels, 5).float(), relative=0.05)


def test_adding_frames_costs_those_frames_alone(model):
    live = LiveVideo(model, None, horizon=9)
    with watched(model) as seen:
        in_pieces(live, frames(9), [1, 5, 1, 2])
    assert seen.tiles == [1, 5, 1, 2]


def test_many_frames_at_once_are_encoded_in_passes():
    live = LiveVideo(tiny_model(max_encoder_tiles=5), None, horizon=9)
    with watched(live.model) as seen:
        live.add(frames(9, tiles=2), [2] * 9)
    assert seen.tiles == [4, 4, 4, 4, 2]


@pytest.mark.filterwarnings(
    "ignore:flex_attention called without torch.compile", "ignore:_compile flag", "ignore:.torch.jit.script"
)
def test_pieces_equal_the_whole_with_flex_attention():
    model, pixels = tiny_model(attn_implementation="flex_attention"), frames(3)
    with torch.compiler.set_stance("force_eager"):  # its meaning, not its compiled kernel
        assert_same(in_pieces(LiveVideo(model, None, horizon=3), pixels, [2, 1]), whole(model, pixels, 3))


# ---- an endless stream


def test_an_endless_stream_starts_as_a_clip_of_the_length_of_its_window(model):
    pixels = frames(6)
    endless = in_pieces(LiveVideo(model, None, window=6), pixels, [1, 2, 1, 2])
    assert_same(endless, whole(model, pixels, 6))


@pytest.mark.parametrize("repeats", [1, 2])
@pytest.mark.parametrize("pieces", [[12], [5, 7], [2, 3, 4, 3]], ids=str)
def test_pieces_of_an_endless_stream_make_no_difference(pieces, repeats):
    model, pixels = tiny_model(video_repeats=repeats), frames(12)
    one_by_one = in_pieces(LiveVideo(model, None, window=WINDOW), pixels, [1] * 12)
    assert_same(in_pieces(LiveVideo(model, None, window=WINDOW), pixels, pieces), one_by_one)


def test_a_frame_of_an_endless_stream_depends_on_the_frames_that_the_layers_reach(model):
    reach = TEMPORAL_LAYERS * (WINDOW - 1)  # frames before it
    pixels = frames(10)
    stream = partial(in_pieces, pieces=[1] * 10)
    last = stream(LiveVideo(model, None, window=WINDOW), pixels)[-1]
    for back in range(1, 10):
        changed = pixels.clone()
        changed[9 - back] += 1
        other = stream(LiveVideo(model, None, window=WINDOW), changed)[-1]
        assert torch.equal(other, last) == (back > reach)


@pytest.mark.parametrize(("layers", "condition"), [(1, "none"), (0, "x+te")])
def test_the_newest_frame_of_a_full_window_is_the_last_of_a_clip_of_its_length(layers, condition):
    # in one layer, where keys have no times: those of earlier frames stay as they were when they came
    model = tiny_model(vision_config={"num_temporal_layers": layers, "temporal_condition": condition})
    pixels = frames(8)
    stream = in_pieces(LiveVideo(model, None, window=WINDOW), pixels, [8])
    assert_same(stream[-1], whole(model, pixels[-WINDOW:], WINDOW)[-1])


def test_memory_of_an_endless_stream_is_that_of_its_window(model, tokenizer):
    live = LiveVideo(model, tokenizer, window=WINDOW, prompt_frames=4)
    held, places = [], []
    for i in range(12):
        live.add(frames(1, seed=i))
        live.ask("Now?", SETTINGS | {"max_new_tokens": 1})
        live.turns.clear()  # what was said is text, and grows
        held.append([memory.keys.shape[1] for memory in live.memories] + [len(live.tokens)])
        places.append(live.prefix.past.get_seq_length())
    assert held[-1][:TEMPORAL_LAYERS] == [WINDOW] * TEMPORAL_LAYERS
    assert held[5:] == [held[5]] * 7
    assert max(places[5:]) <= places[5] + 4  # "Frame12" has one digit more than "Frame5"
    addresses = [memory.keys.data_ptr() for memory in live.memories]
    live.add(frames(5))
    assert [memory.keys.data_ptr() for memory in live.memories] == addresses


# ---- questions


def test_after_the_last_frame_a_question_has_the_answer_of_chat(model, tokenizer):
    pixels = frames(6, tiles=2)
    live = model.live_video(tokenizer, horizon=6)
    in_pieces(live, pixels, [2, 1, 3], tiles=2)
    media = {"data_flag": [3], "num_patches_list": [2] * 6}
    answer, history = model.chat(tokenizer, pixels, "What?", SETTINGS, return_history=True, **media)
    assert live.ask("What?", SETTINGS) == answer
    assert live.ask("And then?", SETTINGS) == model.chat(
        tokenizer,
        pixels,
        "And then?",
        SETTINGS,
        [("".join(f"Frame{i}: <image>\n" for i in range(1, 7)) + "What?", answer)],
        **media,
    )
    assert live.history[0] == ("What?", answer)


SCRIPT = (2, "What?", 0, "Who?", 1, "And now?", 3, 1, "Then?")  # frames that come, and questions


@pytest.mark.parametrize("horizon", [7, None])
def test_answers_between_frames_are_those_without_the_llms_cache(horizon, model, tokenizer, monkeypatch):
    def answers(forgetting: bool):
        live, given = model.live_video(tokenizer, horizon=horizon, window=4), frames(7)
        for step in SCRIPT:
            if isinstance(step, int) and step:
                live.add(given[live.num_frames : live.num_frames + step])
            elif step:
                live.prefix.clear() if forgetting else None
                live.ask(step, SETTINGS)
        return live.history

    assert answers(forgetting=False) == answers(forgetting=True)


def test_the_prompt_is_that_of_a_released_dialogue_whose_numbers_go_on(model, tokenizer, monkeypatch):
    calls = record_calls(
        model, monkeypatch, answer=tokenizer("It moves.", add_special_tokens=False).input_ids
    )
    live = model.live_video(tokenizer, horizon=8)
    live.add(frames(2))
    live.ask("What?", SETTINGS)
    live.add(frames(1))
    live.ask("And <|im_end|> now?", SETTINGS)
    text = tokenizer.decode(calls[-1]["input_ids"][0])
    media = f"<img>{'<IMG_CONTEXT>'}</img>"
    assert text.count("<IMG_CONTEXT>") == 3 == int((calls[-1]["input_ids"] == CONTEXT).sum())
    flat = text.replace(" ", "").replace(media, "*")
    assert "Frame1:*\nFrame2:*\nWhat?<|im_end|>" in flat
    assert "Itmoves.<|im_end|><|im_start|>user\nFrame3:*\nAnd<|im_end|>now?<|im_end|>" in flat


def test_a_question_costs_the_new_frames_and_its_text(model, tokenizer):
    live = model.live_video(tokenizer, horizon=8)
    live.add(frames(6))
    with watched(model) as first:
        live.ask("What?", SETTINGS)
    live.add(frames(2))
    with watched(model) as second:
        live.ask("What?", SETTINGS)
    with watched(model) as third:
        live.ask("What?", SETTINGS)
    assert first.tiles == second.tiles == third.tiles == []
    assert first.rows[0] > 70
    assert third.rows[0] < second.rows[0] < 50
    assert third.rows[0] < 25


def test_an_interrupted_answer_is_as_if_not_asked_for(model, tokenizer):
    answers = []
    for interrupt in (False, True):
        live = model.live_video(tokenizer, horizon=8)
        live.add(frames(3))
        live.ask("What?", SETTINGS)
        live.add(frames(2))
        if interrupt:
            with interrupted(model.model.language_model.layers[1], 2):
                live.ask("Who?", SETTINGS)
        live.ask("Why?", SETTINGS)
        answers.append(live.history)
    assert answers[0] == answers[1]


def test_prompt_frames_shows_the_last_ones_with_their_own_numbers(model, tokenizer, monkeypatch):
    calls = record_calls(model, monkeypatch)
    live = model.live_video(tokenizer, window=4, prompt_frames=3)
    live.add(frames(2))
    live.ask("What?", SETTINGS)
    live.add(frames(2, seed=1))
    live.ask("Now?", SETTINGS)
    text = tokenizer.decode(calls[-1]["input_ids"][0])
    assert [f"Frame{i}:" in text for i in range(1, 5)] == [False, True, True, True]
    cached = live.history
    assert int((calls[-1]["input_ids"] == CONTEXT).sum()) == 3
    monkeypatch.undo()
    live.turns.pop()
    live.prefix.clear()
    live.ask("Now?", SETTINGS)
    assert live.history == cached


def test_a_dialogue_may_start_before_the_first_frame(model, tokenizer):
    live = model.live_video(tokenizer)
    answer = live.ask("Hello", SETTINGS)
    assert answer == model.chat(tokenizer, None, "Hello", SETTINGS)
    live.add(frames(1))
    assert live.ask("What?", SETTINGS)


# ---- what is refused


def test_more_frames_than_the_horizon_are_refused_before_they_are_encoded(model):
    live = LiveVideo(model, None, horizon=4)
    live.add(frames(3))
    with watched(model) as seen, pytest.raises(ValueError, match="2 more frames after 3 .* horizon of 4"):
        live.add(frames(2))
    assert not seen.tiles
    assert_same(live.add(frames(4)[3:])[0], whole(model, frames(4), 4)[3])


REFUSED_FRAMES = {
    "another size": (torch.zeros(1, 3, 112, 112), None, "those before were"),
    "more tiles": (torch.zeros(2, 3, 56, 56), [2], "those before were"),
    "unequal tiles": (torch.zeros(3, 3, 56, 56), [1, 2], "equal numbers"),
    "tiles that do not add up": (torch.zeros(3, 3, 56, 56), [1, 1], "equal numbers"),
    "no pixels": (torch.zeros(0, 3, 56, 56), None, "pixel_values"),
    "not a number": (torch.full((1, 3, 56, 56), torch.nan), None, "not finite"),
    "not a tensor": ([1, 2], None, "expected a tensor"),
}


@pytest.mark.parametrize("name", REFUSED_FRAMES)
def test_frames_that_do_not_fit_are_refused_and_leave_all_as_it_was(name, model):
    pixels, patches, message = REFUSED_FRAMES[name]
    live = LiveVideo(model, None, horizon=4)
    live.add(frames(2))
    with pytest.raises(ValueError, match=message):
        live.add(pixels, patches)
    assert_same(live.add(frames(4)[2:]), whole(model, frames(4), 4)[2:])


def test_after_interrupted_encoding_no_frames_are_taken(model):
    live = LiveVideo(model, None, horizon=4)
    with interrupted(model.model.vision_model.encoder.layers[2], 0):
        live.add(frames(2))
    with pytest.raises(ValueError, match="start a new LiveVideo"):
        live.add(frames(2))


@pytest.mark.parametrize(
    "settings", [{"horizon": 0}, {"window": None}, {"window": 1.5}, {"prompt_frames": -1}]
)
def test_settings_that_are_no_numbers_of_frames_are_refused(settings, model):
    with pytest.raises(ValueError, match=f"{next(iter(settings))} is"):
        LiveVideo(model, None, **settings)


def test_placeholders_in_a_question_are_refused(model, tokenizer):
    live = model.live_video(tokenizer)
    live.add(frames(1))
    with pytest.raises(ValueError, match="shown by add"):
        live.ask("What of <image>?")
    with pytest.raises(ValueError, match="expected a text"):
        live.ask(None)


def test_a_stream_too_long_for_the_llm_says_so(tokenizer):
    model = tiny_model(**FITS_TOKENIZER | {"llm_config": ENDLESS_LLM})
    live = model.live_video(tokenizer, window=WINDOW)
    live.add(frames(20))
    with pytest.raises(ValueError, match="max_position_embeddings"):
        live.ask("What?", SETTINGS)
    live = model.live_video(tokenizer, window=WINDOW, prompt_frames=5)
    live.add(frames(20))
    assert live.ask("What?", SETTINGS)


# ---- two threads, and a model that trains


@pytest.mark.attack("F8")
def test_one_thread_adds_while_others_ask(model, tokenizer):
    live, errors = model.live_video(tokenizer, window=WINDOW, prompt_frames=3), []
    live.add(frames(1))

    def guarded(action, times):
        try:
            for _ in range(times):
                action()
        except Exception as error:
            errors.append(error)

    actions = [(lambda: live.add(frames(1)), 30)] + [(lambda: live.ask("What?", SETTINGS), 4)] * 2
    threads = [Thread(target=guarded, args=action) for action in actions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert live.num_frames == 31 and len(live.history) == 8
    stops = [turn.frames.stop for turn in live.turns]
    assert stops == sorted(stops)
    assert [turn.frames.start for turn in live.turns] == [0, *stops[:-1]]


def test_frames_that_come_during_an_answer_are_those_of_the_next_question(model, tokenizer):
    live = model.live_video(tokenizer, horizon=8)
    live.add(frames(2))

    def add_two(*_):
        if live.num_frames < 4:
            live.add(frames(1))

    hook = model.lm_head.register_forward_hook(add_two)
    expected = model.live_video(tokenizer, horizon=8)
    expected.add(frames(2))
    answer = live.ask("What?", SETTINGS)
    hook.remove()
    assert answer == expected.ask("What?", SETTINGS)
    live.ask("And now?", SETTINGS)
    assert [turn.frames for turn in live.turns] == [range(2), range(2, 4)]


def test_a_model_that_trains_sees_and_answers_as_in_eval(tokenizer):
    model = tiny_model(**FITS_TOKENIZER, vision_config={"drop_path_rate": 0.9})
    answers = []
    for training in (False, True):
        live = model.train(training).live_video(tokenizer, horizon=4)
        answers.append((live.add(frames(4)), live.ask("What?", SETTINGS)))
    assert torch.equal(answers[0][0], answers[1][0]) and answers[0][1] == answers[1][1]
    assert model.training


def test_repetition_is_penalised_in_the_answer_alone_as_chat_does(model, tokenizer):
    settings = SETTINGS | {"repetition_penalty": 5.0}
    live = model.live_video(tokenizer, horizon=3)
    live.add(frames(3))
    media = {"data_flag": [3], "num_patches_list": [1] * 3}
    assert live.ask("What?", settings) == model.chat(tokenizer, frames(3), "What?", settings, **media)
