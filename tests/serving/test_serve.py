"""`pvc serve` through HTTP and the public client: answers are the model's own, whoever asks beside."""

import gc
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from processors import IMAGE, OTHER, VIDEO, image, video
from servers import asset, assistant, connection, head, running, talker, user

from pvc import CHECKPOINT
from pvc.preprocess import load_image
from pvc.serving.limits import Limits

QUESTION = "What colour is the circle?"
DIALOGUES = {
    "text": [user(QUESTION)],
    "image": [user(asset("picture1.png"), QUESTION)],
    "two images": [user(asset("picture1.png"), asset("picture2.png"), QUESTION)],
    "video": [user(asset("video.mp4"), "In which direction does the blue circle move?")],
    "history": [
        {"role": "system", "content": "Answer in one word."},
        user(asset("picture1.png"), "How many circles are there?"),
        assistant("1"),
        user(QUESTION),
    ],
}
FILES = {"picture1.png": image(IMAGE), "picture2.png": image(OTHER), "video.mp4": video(VIDEO)}
ADDRESSES = {str(asset(name)): block for name, block in FILES.items()}


def answer_of(tiny, messages: list[dict]) -> str:
    """What `generate` answers to the messages, the files read from the disk."""
    model, processor = tiny
    own = [
        message
        if isinstance(message["content"], str)
        else message | {"content": [ADDRESSES.get(str(part), part) for part in message["content"]]}
        for message in messages
    ]
    inputs = processor.apply_chat_template(own, add_generation_prompt=True, tokenize=True, return_dict=True)
    stop = model.prompt_template().stop_token_ids(processor.tokenizer)
    output = model.generate(**inputs, max_new_tokens=32, do_sample=False, eos_token_id=stop)
    return processor.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


def ask(server, messages, **options):
    options = {"model": "PVC", "max_tokens": 32} | options
    return server.client.chat.completions.create(messages=messages, **options)


def streamed(server, messages, **options) -> tuple[str, list]:
    """The answer from its pieces, and all chunks."""
    chunks = list(ask(server, messages, stream=True, **options))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    return "".join(pieces), chunks


def long(text: str, **options) -> dict:
    """A request whose answer goes on."""
    return {"messages": [user(text)], "max_tokens": 4096} | options


# ---- answers


@pytest.mark.parametrize("kind", DIALOGUES)
def test_an_answer_is_the_models_own_streamed_or_not(kind, server, tiny):
    expected = answer_of(tiny, DIALOGUES[kind])
    answer = ask(server, DIALOGUES[kind], temperature=0)
    assert answer.choices[0].message.content == expected
    assert streamed(server, DIALOGUES[kind])[0] == expected
    assert answer.choices[0].finish_reason == "stop"


def test_an_answer_equals_chat(server, tiny):
    model, processor = tiny
    pixels = load_image(IMAGE, input_size=model.config.force_image_size, max_num=6)
    expected = model.chat(processor.tokenizer, pixels, f"<image>\n{QUESTION}", {"max_new_tokens": 32})
    assert expected == "red"
    assert ask(server, DIALOGUES["image"]).choices[0].message.content == expected


def test_a_request_says_how_often_its_images_are_shown(server, tiny):
    model, processor = tiny
    pixels = load_image(IMAGE, input_size=model.config.force_image_size, max_num=6)
    media = (processor.tokenizer, pixels, f"<image>\n{QUESTION}", {"max_new_tokens": 32})
    usual = ask(server, DIALOGUES["image"])
    once = ask(server, DIALOGUES["image"], extra_body={"image_repeats": 1})
    assert once.choices[0].message.content == model.chat(*media, image_repeats=1)
    fewer = usual.usage.prompt_tokens - once.usage.prompt_tokens
    assert fewer == 3 * len(pixels) * processor.image_processor.tokens_per_tile


def test_pieces_of_a_long_answer_come_one_by_one_and_are_the_answer(talking):
    whole = ask(talking, [user("Go on.")], max_tokens=60).choices[0].message.content
    text, chunks = streamed(talking, [user("Go on.")], max_tokens=60)
    assert text == whole and len(chunks) > 20
    assert chunks[-1].choices[0].finish_reason == "length"


def test_sixteen_clients_at_once_get_what_each_gets_alone(talking):
    dialogues = [[user("Say this. " * (1 + i % 5) + str(i))] for i in range(14)]
    dialogues += [[user(asset("picture1.png"), "What?")], [user(asset("picture2.png"), "What?")]]
    options = [{"max_tokens": 4 + i % 5, "temperature": i % 3 / 2, "seed": i} for i in range(16)]

    alone = [ask(talking, d, **o).choices[0].message.content for d, o in zip(dialogues, options)]
    talking.server.engine.store.clear()
    before = talking.metric("batch_size_count")
    with ThreadPoolExecutor(16) as pool:
        together = list(pool.map(lambda d, o: streamed(talking, d, **o)[0], dialogues, options))
    assert together == alone
    assert talking.metric("batch_size_count") - before < 16  # some were answered together


def test_a_seed_decides_what_is_sampled(talking):
    def say(**options):
        return ask(talking, [user("Say.")], temperature=1.2, **options).choices[0].message.content

    assert say(seed=1) == say(seed=1)
    assert len({say(seed=1), say(seed=2), say(), say()}) == 4
    greedy = ask(talking, [user("Say.")]).choices[0].message.content
    assert ask(talking, [user("Say.")], temperature=2.0, top_p=1e-6).choices[0].message.content == greedy


def test_an_answer_ends_before_a_stop_text_in_any_piece(talking):
    whole = ask(talking, [user("Go on.")], max_tokens=60).choices[0].message.content
    stop = whole[len(whole) // 2 :][:5]
    expected = whole[: whole.index(stop)].strip()
    answer = ask(talking, [user("Go on.")], max_tokens=60, stop=["never there", stop])
    assert answer.choices[0].message.content == expected
    assert answer.choices[0].finish_reason == "stop"
    assert streamed(talking, [user("Go on.")], max_tokens=60, stop=stop)[0] == expected


def test_usage_counts_tokens_and_comes_last_where_a_stream_asks_for_it(server, tiny):
    answer = ask(server, DIALOGUES["image"])
    inputs = tiny[1].apply_chat_template(
        [{"role": "user", "content": [image(IMAGE), {"type": "text", "text": QUESTION}]}],
        add_generation_prompt=True,
        tokenize=True,
    )
    assert answer.usage.prompt_tokens == inputs.shape[1]
    assert answer.usage.total_tokens == inputs.shape[1] + answer.usage.completion_tokens

    _, chunks = streamed(server, DIALOGUES["image"], stream_options={"include_usage": True})
    assert chunks[-1].usage.prompt_tokens == inputs.shape[1] and not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_a_turn_computes_what_is_new(server, tiny):
    server.server.engine.store.clear()
    turns = [user(asset("picture1.png"), "How many circles are there?")]
    first = ask(server, turns)
    turns += [assistant(first.choices[0].message.content), user(QUESTION)]
    second = ask(server, turns)

    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens >= first.usage.prompt_tokens
    assert second.choices[0].message.content == answer_of(tiny, turns)

    other = [user(asset("picture2.png"), "How many circles are there?")]  # other pixels, same text
    assert ask(server, other).usage.prompt_tokens_details.cached_tokens < 50
    assert ask(server, other).choices[0].message.content == answer_of(tiny, other)


def test_what_is_kept_of_dialogues_stays_within_its_bound():
    with running(*talker(), limits=Limits(cache_bytes=300_000)) as served:
        for i in range(8):
            ask(served, [user(f"{i} and more of it")], max_tokens=20)
            assert served.metric("cache_bytes") <= 300_000
        assert served.metric("cache_bytes") > 100_000


def test_requests_leave_no_objects_behind():
    def number_of_objects() -> int:
        gc.collect()
        return len(gc.get_objects())

    with running(*talker(), limits=Limits(cache_bytes=200_000)) as served:
        for i in range(40):
            served.post({"messages": [user(f"{i} words")], "max_tokens": 2, "stream": bool(i % 2)})
            if i == 19:
                before = number_of_objects()
        assert number_of_objects() - before < 200


# ---- clients that go away, time, and places


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_away_frees_its_place_within_a_second(stream, talking):
    body = json.dumps(long("Talk.", stream=stream)).encode()
    with connection(talking.port) as sock:
        sock.sendall(head(len(body)) + body)
        talking.wait_for("requests_in_place", 1)
        time.sleep(0.3)
    assert talking.wait_for("requests_in_place", 0) < 1.0

    begun = time.monotonic()  # and the model is free again
    ask(talking, [user("Short.")], max_tokens=1)
    assert time.monotonic() - begun < 1.5


def test_one_request_too_many_is_told_to_come_again():
    with running(*talker(), limits=Limits(waiting=1, batch=1)) as served:
        threads = [threading.Thread(target=lambda: served.post(long("Talk.", max_tokens=120))) for _ in "ab"]
        for thread in threads:
            thread.start()
        served.wait_for("requests_in_place", 2)
        with pytest.raises(openai.RateLimitError, match="2 requests wait already"):
            ask(served, [user("Me too.")])
        for thread in threads:
            thread.join()
        assert ask(served, [user("Now?")], max_tokens=1).choices[0].finish_reason == "length"


def test_an_answer_that_takes_too_long_ends():
    with running(*talker(), limits=Limits(answer_s=1.0)) as served:
        status, answer = served.post(long("Talk."))
        assert status == 504 and "within 1 seconds" in answer["error"]["message"]
        with pytest.raises(openai.APIError, match="within 1 seconds"):
            streamed(served, [user("Talk.")], max_tokens=4096)
        served.wait_for("requests_in_place", 0)


def test_a_request_that_does_not_arrive_ends():
    with running(*talker(), limits=Limits(body_s=0.5)) as served, connection(served.port) as sock:
        sock.sendall(head(1000) + b'{"messages"')
        assert sock.recv(2**16).startswith(b"HTTP/1.1 408")


# ---- models, keys, hosts


def test_models_are_the_one_that_is_served(server):
    assert [model.id for model in server.client.models.list()] == ["PVC"]
    assert server.client.models.retrieve("PVC").object == "model"
    for ask_another in (
        lambda: server.client.models.retrieve("other/model"),
        lambda: server.client.chat.completions.create(model="other", messages=[user("?")]),
    ):
        with pytest.raises(openai.NotFoundError, match="'PVC' alone"):
            ask_another()


def test_a_key_is_asked_of_all_but_health():
    with running(*talker(), api_key="right") as served:
        assert served.ask("/health") == (200, {"status": "ok"})
        for path in ("/metrics", "/v1/models", "/nowhere"):
            assert served.ask(path)[0] == 401
        with pytest.raises(openai.AuthenticationError):
            ask(served, [user("?")])
        assert served.client.with_options(api_key="right").models.list().data[0].id == "PVC"


def test_metrics_are_prometheus_text(server):
    ask(server, DIALOGUES["text"])
    _, text = server.ask("/metrics")
    assert "# TYPE pvc_first_token_seconds histogram" in text
    assert 'pvc_requests_total{code="200"}' in text
    for line in text.splitlines():
        assert line.startswith("# ") or float(line.rpartition(" ")[2]) >= 0


def test_the_client_of_the_documentation_prints_what_its_page_shows(server, capsys, monkeypatch):
    monkeypatch.chdir(CHECKPOINT)
    page = (CHECKPOINT / "docs" / "serving.md").read_text(encoding="utf-8")
    section = page[page.index("## pvc serve") :]
    code = section.partition("```py\n")[2].partition("```")[0]
    shown = section.partition("```output\n")[2].partition("```")[0]

    code = code.replace("http://127.0.0.1:8000", server.url).replace("PVC-8B", "PVC")
    exec(compile(code, "docs/serving.md", "exec"), {})
    assert capsys.readouterr().out == shown
