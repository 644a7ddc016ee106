"""Bodies of requests: what is taken, what is refused, and with which words."""

import json

import pytest

from pvc.serving.errors import ApiError, without_paths
from pvc.serving.limits import Limits
from pvc.serving.requests import Sampling, Sources, parse_request

LIMITS = Limits(tokens=100, default_tokens=50)
DATA_ALONE = Sources()
ASK = [{"role": "user", "content": "What?"}]


def parse(sources: Sources = DATA_ALONE, **fields):
    return parse_request(json.dumps({"messages": ASK} | fields).encode(), LIMITS, sources)


def refusal(**fields) -> ApiError:
    with pytest.raises(ApiError) as found:
        parse(**fields)
    assert found.value.status == 400
    return found.value


def test_without_settings_an_answer_is_greedy_and_of_the_default_length():
    assert parse().sampling == Sampling(max_tokens=50, temperature=0.0)
    assert not parse().stream


def test_settings_are_taken():
    given = {"temperature": 0.5, "top_p": 0.9, "seed": -3, "stop": ["a", "b"], "max_completion_tokens": 7}
    assert parse(**given).sampling == Sampling(7, 0.5, 0.9, -3, ("a", "b"))
    assert parse(stop="a", max_tokens=7, max_completion_tokens=7).sampling == Sampling(7, stop=("a",))
    streamed = parse(stream=True, stream_options={"include_usage": True})
    assert streamed.stream and streamed.include_usage


@pytest.mark.parametrize(
    "field",
    [
        {"n": 1},
        {"logprobs": False},
        {"tools": []},
        {"tool_choice": "auto"},
        {"presence_penalty": 0},
        {"frequency_penalty": 0.0},
        {"response_format": {"type": "text"}},
        {"user": "someone", "metadata": {"a": "b"}, "store": True},
        {"audio": None, "logit_bias": None, "seed": None, "stop": None, "max_tokens": None},
    ],
)
def test_what_changes_nothing_is_taken(field):
    assert parse(**field) == parse()


@pytest.mark.parametrize(
    "name, value, words",
    [
        ("n", 2, "one answer a request"),
        ("n", True, "one answer a request"),
        ("logprobs", True, "not supported"),
        ("top_logprobs", 3, "not supported"),
        ("tools", [{"type": "function"}], "calls no functions"),
        ("presence_penalty", 0.5, "not supported"),
        ("audio", {"voice": "alloy"}, "not supported"),
        ("response_format", {"type": "json_object"}, "not supported"),
        ("max_tiles", 3, "not a parameter"),
        ("max_tokens", 101, "from 1 to 100"),
        ("temperature", 2.1, "from 0 to 2"),
        ("top_p", 0, "from 1e-06 to 1"),
        ("stop", [""], "of 1 to 256 characters"),
        ("stop", list("abcde"), "up to 4"),
        ("stream", "yes", "true or false"),
        ("seed", 1.5, "whole number"),
        ("stream_options", {"include_usage": True}, "stream=true"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_name(name, value, words):
    error = refusal(**{name: value})
    assert error.param == name and words in error.message


def test_two_names_of_one_setting_must_agree():
    assert "differ" in refusal(max_tokens=3, max_completion_tokens=4).message


def test_messages_become_those_of_the_processor():
    data = "data:image/png;base64,AAAA"
    messages = [
        {"role": "developer", "content": "Be short."},
        {
            "role": "user",
            "name": "a",
            "content": [{"type": "image_url", "image_url": {"url": data, "detail": "low"}}],
        },
        {"role": "assistant", "content": "Red."},
        {
            "role": "user",
            "content": [{"type": "video_url", "video_url": {"url": data}}, {"type": "text", "text": "?"}],
        },
    ]
    assert parse(messages=messages).messages == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": [{"type": "image", "image": data}]},
        {"role": "assistant", "content": "Red."},
        {"role": "user", "content": [{"type": "video", "video": data}, {"type": "text", "text": "?"}]},
    ]


def test_an_error_names_the_message_and_its_part():
    part = {"type": "image_url", "image_url": "data:,"}
    error = refusal(messages=[*ASK, {"role": "user", "content": [{"type": "text", "text": "a"}, part]}])
    assert error.param == "messages[1].content[1]"
    last = refusal(messages=[*ASK, {"role": "assistant", "content": "a"}])
    assert "the last is the user's" in last.message
    second = refusal(messages=[*ASK, {"role": "system", "content": "a"}, *ASK])
    assert "stands first" in second.message


@pytest.mark.parametrize(
    "address, taken_by",
    [("https://a.example/b", "http"), ("http://a.example/b", "http"), ("file:///a", "files")],
)
def test_an_address_is_taken_where_the_server_is_told_so(address, taken_by):
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": address}}]}]
    for name in ("http", "files"):
        sources = Sources(**{name: True})
        if name == taken_by:
            assert parse(sources, messages=messages).sources == [address]
        else:
            with pytest.raises(ApiError, match="begins with data:"):
                parse(sources, messages=messages)


def test_a_message_for_a_client_has_no_path_of_the_server():
    text = "/home/a/b.png at <_io.BytesIO object at 0x7f00aa>: and /tmp/x/y"
    assert without_paths(text) == "(a path) at the file: and (a path)"
    assert without_paths("/media/a.png is none", quoted="file:///media/a.png") == "/media/a.png is none"
    assert without_paths("data:image/png;base64,AA/BB/CC//D") == "data:image/png;base64,AA/BB/CC//D"


def test_limits_are_numbers_above_zero():
    with pytest.raises(ValueError, match="batch=0"):
        Limits(batch=0)
    assert Limits(cache_bytes=0, waiting=0).prepared == 32


def test_image_repeats_are_read_and_checked():
    assert parse().image_repeats is None
    assert parse(image_repeats=2).image_repeats == 2
    for wrong in (0, 17, 1.5, "2", True):
        error = refusal(image_repeats=wrong)
        assert "expected a whole number from 1 to 16" in error.message and error.param == "image_repeats"
