"""A reply becomes pairs, or is dropped for a reason that is counted."""

import json
from collections import Counter

import pytest
from construction import PROMPTS, good_text

from pvc.training.data_construction.frame_marks import as_seconds, with_single_marks
from pvc.training.data_construction.replies import DROPPED, FATES, Pair, is_repetitive, read_reply

TASKS = PROMPTS.tasks
TEXT = "A brown dog runs along the wet beach, jumps over a log and shakes itself dry near the water."


def read(task: str, text, num_frames: int = 9, **entry):
    text = text if isinstance(text, str) else json.dumps(text)
    entry = {"reply": text, "finish_reason": "stop"} | entry
    found = read_reply(entry, TASKS[task], PROMPTS, num_frames=num_frames, question="Tell me.")
    assert found.fate in FATES and found.dropped.keys() <= set(DROPPED)
    return found


def pairs(*answers: str, question: str = "What is it?") -> dict:
    return {"pairs": [{"question": question, "answer": answer} for answer in answers]}


@pytest.mark.parametrize("task", TASKS)
def test_a_good_reply_is_used_in_every_task(task):
    found = read(task, good_text(task))
    assert found.fate == "used" and len(found.pairs) == 1 and not found.dropped


def test_a_text_is_the_answer_to_the_drawn_question():
    assert read("story", TEXT).pairs == [Pair("Tell me.", TEXT)]


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```", "{}"])
def test_json_may_stand_in_a_fence(fence):
    assert read("reasoning_qa", fence.replace("{}", json.dumps(pairs("a dog")))).pairs == [
        Pair("What is it?", "a dog")
    ]


@pytest.mark.parametrize(
    ("text", "finish_reason", "fate"),
    [
        ("I'm sorry, but I can't help with identifying people.", "stop", "refused"),
        ("I’m unable to view videos.", "stop", "refused"),
        ("", "content_filter", "refused"),
        ('{"pairs": [{"question": "Wh', "length", "cut off"),
        ('{"pairs": [{"question": "Wh', "stop", "broken"),
        ("Here you are: " + json.dumps(pairs("a dog")), "stop", "broken"),
        ("[" * 100_000, "stop", "broken"),
        ('{"pairs": {"question": "a"}}', "stop", "broken"),
        ('"pairs"', "stop", "broken"),
        ("1e999", "stop", "broken"),
        ('{"pairs": []}', "stop", "broken"),
        ('{"pairs": [1, null, {"question": 1, "answer": "a"}, {"question": "a"}]}', "stop", "nothing left"),
    ],
)
def test_a_reply_that_is_none_has_a_fate_of_its_own(text, finish_reason, fate):
    found = read("reasoning_qa", text, finish_reason=finish_reason)
    assert (found.fate, found.pairs) == (fate, [])


def test_only_a_task_that_allows_it_may_be_declined():
    assert read("other_entities", pairs()).fate == "declined"
    assert read("timed_qa", pairs()).fate == "broken"


@pytest.mark.parametrize(
    ("task", "answer", "reason"),
    [
        ("reasoning_qa", " ", "ill-formatted"),
        ("reasoning_qa", "As the provided frames show, it rains.", "ill-formatted"),
        ("reasoning_qa", "I cannot tell.", "refused"),
        ("reasoning_qa", "It says <image>.", "placeholder in the text"),
        ("reasoning_qa", "It ends.<|im_end|>", "placeholder in the text"),
        ("reasoning_qa", "<think>Hm.</think>It ends.", "placeholder in the text"),
        ("timed_qa", "It rains at <Frame 10>.", "frame that is not there"),
        ("timed_qa", "It rains at <Frame 0>.", "frame that is not there"),
        ("timed_qa", "It rains from <Frame 3-12>.", "frame that is not there"),
        ("timed_qa", "It rains in frame 3.", "ill-formatted"),
        ("timed_qa", "It rains at the end.", "frames missing"),
        ("temporal_qa", "It rains at <Frame 3>.", "frames named"),
        ("main_entities", "A person in a hat.", "vague"),
        ("main_entities", "It holds Something.", "vague"),
        ("concise_qa", "one two three four five six seven eight nine", "too long"),
        ("reasoning_qa", "It rains hard here. " * 3, "repetitive"),
        ("reasoning_qa", "and then the dog runs to the tree " * 5, "repetitive"),
    ],
)
def test_a_pair_is_dropped_for_a_reason_and_the_others_stay(task, answer, reason):
    good = json.loads(good_text(task))["pairs"][0]
    bad = {"question": "What happens?", "answer": answer}
    found = read(task, {"pairs": [bad, good]})
    assert found.dropped == Counter({reason: 1}) and len(found.pairs) == 1


@pytest.mark.parametrize("answer", ["A personal trainer.", "An itemised bill.", "The variousness."])
def test_vague_phrases_are_whole_words(answer):
    assert read("main_entities", pairs(answer)).fate == "used"


def test_varied_text_is_not_repetitive():
    assert not is_repetitive(TEXT + " Then it lies down in the sun. Later a boy throws a stick for it.")
    assert not is_repetitive("Yes. Yes. Yes. No.")


# ---- frames


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("At <Frame 3> it rains.", "At frame of 3s it rains."),
        ("<frame 03>: rain", "frame of 3s: rain"),
        ("<Frame 3> to <Frame 7>: rain", "frame of 3s to frame of 7s: rain"),
        ("<Frame 3-7>: rain", "frame of 3s to frame of 7s: rain"),
        ("<Frame 3 – Frame 7>", "frame of 3s to frame of 7s"),
        ("<Frames 3 and 4>", "frame of 3s and frame of 4s"),
        ("a picture frame and 3 dogs", "a picture frame and 3 dogs"),
    ],
)
def test_marks_of_frames_become_seconds(text, expected):
    assert as_seconds(with_single_marks(text)) == expected


def test_frames_may_be_named_in_the_question_alone():
    found = read("timed_qa", pairs("It rains.", question="What happens at <Frame 9>?"))
    assert found.pairs == [Pair("What happens at frame of 9s?", "It rains.")]


# ---- choices


def choice(**changes) -> dict:
    given = {
        "question": "Which?",
        "options": ["A. red", "(b) blue", "green"],
        "letter": "(b)",
        "reason": "It is.",
    }
    return {"pairs": [given | changes]}


def test_a_choice_for_evaluation_ends_as_in_the_paper_and_is_answered_by_a_letter():
    expected = Pair("Which?\nA. red\nB. blue\nC. green\nAnswer with only one letter", "B")
    assert read("choice_qa", choice()).pairs == [expected]


def test_a_reasoned_choice_is_answered_by_its_option_and_the_reason():
    expected = Pair("Which?\nA. red\nB. blue\nC. green", "B. blue. It is.")
    assert read("reasoning_choice", choice()).pairs == [expected]


@pytest.mark.parametrize(
    "changes",
    [
        {"letter": "D"},
        {"letter": "AB"},
        {"letter": 1},
        {"letter": ""},
        {"options": ["red"]},
        {"options": ["red", "Red", "blue"]},
        {"options": ["red", 2]},
        {"options": "red, blue"},
        {"options": [str(number) for number in range(9)]},
        {"reason": ""},
        {"reason": ["because"]},
    ],
)
def test_a_choice_that_is_none_is_dropped(changes):
    assert read("reasoning_choice", choice(**changes)).dropped == {"ill-formatted": 1}
