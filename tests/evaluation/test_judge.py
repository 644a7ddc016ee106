"""Judging by a chat model: official messages and readings, every reply counted, errors never kept."""

import json
import resource

import pytest
from builders import golden
from chat_server import ChatServer, reply

from pvc.evaluation.judge import MOST_ERRORS, Judge, JudgeError, ReplyCache, endpoint, prompt_hash
from pvc.evaluation.judge_protocols import (
    CaptionVerdict,
    captioning_judge_messages,
    mlvu_judge_messages,
    qa_judge_messages,
    read_captioning_reply,
    read_mlvu_scores,
    read_qa_verdict,
    read_tempcompass_verdict,
    read_video_chatgpt_verdict,
    summarise_mlvu,
    summarise_qa,
    summarise_ratings,
    tempcompass_judge_messages,
)

OPEN_ENDED = json.loads(golden("evaluation/openended_qa.json").read_text())
TEMPCOMPASS = json.loads(golden("evaluation/tempcompass.json").read_text())
GENERATION = json.loads(golden("evaluation/mlvu.json").read_text())["generation"]
QA_MESSAGES = json.loads(golden("evaluation/prompts.json").read_text())["qa_judge_messages"]

MESSAGES = qa_judge_messages("is it so", "yes", "Yes.")
VERDICT = "{'pred': 'yes', 'score': 4}"


# ---------------------------------------------------------------- open questions


def test_messages_about_open_answers_are_the_official_ones():
    for case in QA_MESSAGES:
        assert qa_judge_messages(case["question"], case["answer"], case["prediction"]) == case["messages"]


def test_braces_in_an_answer_stay_as_they_are():
    user = qa_judge_messages("{question}", "{}", "{0}")[1]["content"]

    assert "Question: {question}\nCorrect Answer: {}\nPredicted Answer: {0}\n" in user


def test_verdicts_are_read_as_lmms_reads_them():
    for case in OPEN_ENDED["judge_replies"]:
        expected = case["lmms_parse_score"]
        assert read_qa_verdict(case["reply"]) == (tuple(expected) if expected else None), case["reply"]


@pytest.mark.parametrize(
    "reply",
    ["{" * 100_000, "{'pred': 1, 'score': 1}", "{1}", "{'score': 1e999, 'pred': 'yes'}", "{('pred',)}"],
)
def test_malformed_verdicts_are_unreadable(reply):
    assert read_qa_verdict(reply) is None
    assert read_video_chatgpt_verdict(reply) is None


def test_lmms_figures_over_readable_replies():
    verdicts = [read_qa_verdict(case["reply"]) for case in OPEN_ENDED["judge_replies"]]
    summary = summarise_qa(verdicts, failed=2)
    official = OPEN_ENDED["lmms_aggregate_over_readable"]

    assert summary.official_score == pytest.approx(official["average_score"])
    assert 100 * summary.official_accuracy == pytest.approx(official["accuracy_percent"])


def test_unreadable_replies_and_failed_calls_are_counted_as_wrong():
    verdicts = [read_qa_verdict(case["reply"]) for case in OPEN_ENDED["judge_replies"]]
    summary = summarise_qa(verdicts, failed=2)

    assert (summary.n, summary.unreadable, summary.failed) == (17, 4, 2)
    assert (summary.yes, summary.no, summary.other) == (7, 3, 1)
    assert summary.accuracy == pytest.approx(7 / 17)
    assert summary.score == pytest.approx(32 / 17)


def test_video_chatgpt_reads_whole_dictionaries_alone():
    used = OPEN_ENDED["video_chatgpt_replies_used"]
    read = [
        case["reply"] for case in OPEN_ENDED["judge_replies"] if read_video_chatgpt_verdict(case["reply"])
    ]
    assert read == used

    summary = summarise_qa([read_video_chatgpt_verdict(reply) for reply in used])
    assert OPEN_ENDED["video_chatgpt_printed"][1:] == [
        f"Yes count: {summary.yes}",
        f"No count: {summary.no}",
        f"Accuracy: {summary.official_accuracy}",
        f"Average score: {summary.official_score}",
    ]


def test_no_answers_have_figures_of_zero():
    assert set(summarise_qa([])) == {0}
    assert summarise_ratings([]).accuracy == 0
    assert summarise_mlvu([], "summary").total == 0


def test_scores_that_are_not_finite_are_unreadable():
    assert read_mlvu_scores("{'score_accuracy': nan, 'score_relevance': 5}", "sub_scene") is None


# ---------------------------------------------------------------- MLVU and TempCompass


def test_mlvu_scores_are_read_as_the_official_code_reads_them():
    for case in GENERATION:
        expected = None if isinstance(case["sub_scene"], dict) else case["sub_scene"]
        reply = case["reply"]
        assert read_mlvu_scores(reply, "sub_scene") == expected, reply

        reply = reply.replace("accuracy", "completeness").replace("relevance", "reliability")
        expected = None if isinstance(case["summary"], dict) else case["summary"]
        assert read_mlvu_scores(reply, "summary") == expected, reply


def test_mlvu_means_are_over_all_answers():
    summary = summarise_mlvu([case["reply"] for case in GENERATION], "sub_scene", failed=1)

    assert (summary.n, summary.unreadable, summary.failed) == (8, 2, 1)
    assert summary.scores == pytest.approx({"accuracy": 14.5 / 8, "relevance": 20 / 8})
    assert summary.total == pytest.approx(34.5 / 8)


def test_mlvu_messages_hold_what_the_task_is_judged_by():
    system, user = mlvu_judge_messages("sub_scene", "red", question="Which\ncolour?", scoring_points=["red"])
    assert system["content"].startswith("\n" + " " * 28 + "##TASK DESCRIPTION: \n")
    assert user["content"].split("\n")[2:5] == [
        " " * 28 + "Question: Whichcolour?",
        " " * 28 + "Scoring Points: ['red']",
        " " * 28 + "Respondent's Answer: red",
    ]

    _, user = mlvu_judge_messages("summary", "a man runs", answer="a man walks")
    assert "Standard Answer: a man walks\n" in user["content"]
    with pytest.raises(ValueError, match="'ego' is not judged: expected one of sub_scene, summary"):
        mlvu_judge_messages("ego", "")


def test_caption_replies_are_read_as_the_official_code_reads_them():
    for case in TEMPCOMPASS["captioning_judge_replies"]:
        parsed = case["parsed"]
        expected = CaptionVerdict(parsed["rating"], parsed["chatgpt-answer"], parsed["chatgpt-reasoning"])
        assert read_captioning_reply(case["reply"], case["gt"]) == expected, case["reply"]


def test_tempcompass_verdicts_are_read_as_the_official_code_reads_them():
    for case in TEMPCOMPASS["verdicts"]:
        expected = None if isinstance(case["rating"], dict) else case["rating"]
        assert read_tempcompass_verdict(case["reply"]) == expected, case["reply"]


def test_unreadable_ratings_are_counted_as_wrong():
    assert summarise_ratings([1, 0, -1, None, 1], failed=3) == (8, 2, 2, 3, 0.25)


def test_tempcompass_messages_hold_question_reference_and_prediction():
    user = captioning_judge_messages("A dog runs.", "What runs?\nA. a dog\nB. a cat")[1]["content"]
    assert user.endswith(
        "\nVideo Description:A dog runs.\nMulti-Choice Question:\nWhat runs?\nA. a dog\nB. a cat\n"
    )

    for task, heading in (
        ("multi-choice", "Multi-Choice"),
        ("yes_no", "Yes/No"),
        ("caption_matching", "Caption Matching"),
    ):
        user = tempcompass_judge_messages(task, "maybe", "Is it?", "yes")[1]["content"]
        assert user.endswith(
            f"\n{heading} Question:\nIs it?\nGround-Truth Answer: yes\nModel Prediction: maybe"
        )
    with pytest.raises(ValueError, match="'captioning' has no such judge"):
        tempcompass_judge_messages("captioning", "", "", "")


# ---------------------------------------------------------------- the client


def completion(text, model="judge-0613"):
    return reply(text, model)


@pytest.fixture
def server(monkeypatch):
    for name in ("OPENAI_API_KEY", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ChatServer(lambda body: completion(VERDICT))
    yield server
    server.close()


def test_a_question_is_sent_at_temperature_0_with_the_key_of_the_environment(server, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "secret")
    judge = Judge(server.url, "judge", key_variable="JUDGE_KEY")

    assert judge.ask(MESSAGES, max_tokens=64) == VERDICT
    path, headers, body = server.requests[0]
    assert path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {"model": "judge", "messages": MESSAGES, "temperature": 0, "max_tokens": 64}


def test_without_a_key_no_authorisation_is_sent(server):
    Judge(server.url, "judge").ask(MESSAGES)

    assert "Authorization" not in server.requests[0][1]


def test_a_kept_reply_is_not_asked_for_again(server, tmp_path):
    cache = tmp_path / "run" / "judge.jsonl"
    first = Judge(server.url, "judge", cache=cache).ask(MESSAGES)
    again = Judge(server.url, "judge", cache=cache).ask(MESSAGES)

    assert first == again == VERDICT
    assert len(server.requests) == 1
    assert json.loads(cache.read_text()) == {
        "prompt_hash": prompt_hash(MESSAGES, 128),
        "model": "judge",
        "reported_model": "judge-0613",
        "reply": VERDICT,
    }


def test_another_prompt_length_or_model_is_another_question(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    Judge(server.url, "judge", cache=cache).ask(MESSAGES)
    Judge(server.url, "judge", cache=cache).ask(MESSAGES, max_tokens=64)
    Judge(server.url, "judge", cache=cache).ask(qa_judge_messages("is it so", "yes", "No."))
    Judge(server.url, "other", cache=cache).ask(MESSAGES)

    assert len(server.requests) == 4


@pytest.mark.parametrize(
    "error",
    [
        (500, b"down", {}),
        (429, b"slow down", {"Retry-After": "0"}),
        b"<html>",
        [1],
        {"error": {"message": "busy"}},
        completion(""),
        completion(None),
    ],
)
def test_temporary_errors_are_tried_again_and_never_kept(server, tmp_path, error):
    server.responses = [error, error]
    cache = tmp_path / "judge.jsonl"

    assert Judge(server.url, "judge", cache=cache, wait_s=0).ask(MESSAGES) == VERDICT
    assert len(server.requests) == 3
    assert [json.loads(line)["reply"] for line in cache.read_text().splitlines()] == [VERDICT]


def test_after_the_last_try_there_is_an_error_and_nothing_is_kept(server, tmp_path):
    server.responses = [(503, b"down", {})] * 3
    cache = tmp_path / "judge.jsonl"

    with pytest.raises(JudgeError, match=r"503 .*: down \(3 tries\)"):
        Judge(server.url, "judge", cache=cache, attempts=3, wait_s=0).ask(MESSAGES)
    assert len(server.requests) == 3
    assert not cache.exists()


def test_a_refused_request_is_not_repeated(server):
    server.responses = [(401, b"wrong key", {})]

    with pytest.raises(JudgeError, match="401 Unauthorized: wrong key"):
        Judge(server.url, "judge").ask(MESSAGES)
    assert len(server.requests) == 1


def test_the_key_follows_no_redirect(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server.responses = [(302, b"", {"Location": server.url + "/elsewhere"})]

    with pytest.raises(JudgeError, match="302"):
        Judge(server.url, "judge").ask(MESSAGES)
    assert len(server.requests) == 1


def test_a_server_that_is_not_there_is_an_error(server):
    url = server.url
    server.http.server_close()

    with pytest.raises(JudgeError, match=r"cannot be reached: .* \(2 tries\)"):
        Judge(url, "judge", attempts=2, wait_s=0, timeout_s=2).ask(MESSAGES)


def test_many_questions_keep_their_order_and_one_error_stops_no_other(server):
    server.responses = [completion("first"), (400, b"too long", {}), completion("third")]
    asked = [qa_judge_messages("q", "a", str(number)) for number in range(3)]
    replies = Judge(server.url, "judge").ask_all(asked, workers=1)

    assert [reply.text for reply in replies] == ["first", None, "third"]
    assert "400 Bad Request: too long" in replies[1].error


def test_concurrent_replies_are_all_kept(server, tmp_path):
    cache = tmp_path / "judge.jsonl"
    asked = [qa_judge_messages("q", "a", str(number)) for number in range(20)]
    replies = Judge(server.url, "judge", cache=cache).ask_all(asked, workers=8)

    assert all(reply == (VERDICT, None) for reply in replies)
    kept = {json.loads(line)["prompt_hash"] for line in cache.read_text().splitlines()}
    assert kept == {prompt_hash(messages, 128) for messages in asked}


def test_a_server_that_refuses_everything_is_not_asked_for_ever(server):
    server.responses = [(401, b"wrong key", {})] * 100
    judge = Judge(server.url, "judge")
    replies = judge.ask_all([qa_judge_messages("q", "a", str(n)) for n in range(100)], workers=1)

    assert all(reply.text is None and "wrong key" in reply.error for reply in replies)
    assert len(server.requests) == MOST_ERRORS
    assert replies[-1].error.startswith(f"not asked after {MOST_ERRORS} errors in a row")


def test_half_a_character_in_a_reply_is_kept(server, tmp_path):
    server.responses = [completion("yes \ud800")]
    cache = tmp_path / "judge.jsonl"
    assert Judge(server.url, "judge", cache=cache).ask(MESSAGES) == "yes \ud800"
    assert Judge(server.url, "judge", cache=cache).ask(MESSAGES) == "yes \ud800"
    assert len(server.requests) == 1


def test_an_unfinished_last_line_is_cut_off(tmp_path):
    path = tmp_path / "judge.jsonl"
    ReplyCache(path).put("hash", "judge", "答案")
    whole = path.read_bytes()
    path.write_bytes(whole + b'[1]\n{"reply": 1}\n' + whole[:20])

    cache = ReplyCache(path)
    assert cache.get("hash", "judge") == "答案"
    assert cache.get("hash", "other") is None
    assert path.read_bytes() == whole + b'[1]\n{"reply": 1}\n'


def test_a_reply_that_the_disk_cannot_hold_leaves_whole_lines(tmp_path):
    path = tmp_path / "judge.jsonl"
    cache = ReplyCache(path)
    cache.put("first", "judge", "yes")
    whole = path.read_bytes()

    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 10, hard))
    try:
        with pytest.raises(OSError, match="10 of .* bytes of a reply could be written"):
            cache.put("second", "judge", "yes")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    assert cache.get("second", "judge") is None and path.read_bytes() == whole
    cache.put("second", "judge", "no")
    assert ReplyCache(path).get("second", "judge") == "no"


def test_urls_are_completed_and_checked():
    for url in ("http://host:8000/v1", "http://host:8000/v1/", "http://host:8000/v1/chat/completions"):
        assert endpoint(url) == "http://host:8000/v1/chat/completions"

    for url in ("host/v1", "file:///etc/passwd", "http:///v1"):
        with pytest.raises(ValueError, match="expected http://host/v1 or https://host/v1"):
            endpoint(url)
    with pytest.raises(ValueError, match="put the key into an environment variable") as error:
        endpoint("https://me:secret@host/v1")
    assert "secret" not in str(error.value)
