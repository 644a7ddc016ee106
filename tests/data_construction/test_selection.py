"""Lists of videos are read; captions decide which stay; tasks have the paper's shares."""

import json
from collections import Counter

import pytest
import yaml
from construction import PROMPTS

from pvc.training.data_construction.noun_phrases import noun_phrases
from pvc.training.data_construction.tasks import PROMPTS as PROMPTS_FILE
from pvc.training.data_construction.tasks import inclusion_chances, read_prompts, tasks_of
from pvc.training.data_construction.videos import Video, read_list, select

TASKS = list(PROMPTS.tasks.values())


def videos(*captions: str) -> list[Video]:
    return [Video(f"v{i}", f"{i}.mp4", caption) for i, caption in enumerate(captions)]


def names(selection) -> list[str]:
    return [video.name for video in selection.videos]


# ---- lists


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"video": "x/a.mp4", "caption": "a dog", "id": "one"}\n\n{"path": "b.mp4"}\n'),
        ("a.csv", "id,video,caption\none,x/a.mp4,a dog\n,b.mp4,\n"),
        ("a.tsv", "id\tpath\tcaption\none\tx/a.mp4\ta dog\n\tb.mp4\t\n"),
    ],
)
def test_lists_are_read_in_each_format(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    first, second = read_list(tmp_path / name)
    assert first == Video("one", str(tmp_path / "x/a.mp4"), "a dog")
    assert second.path == str(tmp_path / "b.mp4") and second.caption == "" and second.name.startswith("b-")
    assert read_list(tmp_path / name, root="/data")[0].path == "/data/x/a.mp4"


def test_a_path_a_line_is_a_list_and_files_of_one_name_stay_apart(tmp_path):
    (tmp_path / "a.txt").write_text("x/a.mp4\ny/a.mp4\nx/a.mp4\n")
    found = read_list(tmp_path / "a.txt")
    assert len(found) == 2 and len({video.name for video in found}) == 2


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "a.jsonl, line 2 is not JSON"),
        ("[]", "line 2: expected an object"),
        ('{"caption": "a"}', "line 2: expected the path of a video under 'video' or 'path'"),
        ('{"video": "a.mp4", "caption": 3}', "line 2: expected a text as 'caption'"),
        ('{"video": "a.mp4", "id": "../a"}', "line 2: id '../a': expected letters"),
        ('{"video": "a.mp4", "id": ".."}', "expected letters"),
        ('{"video": "b.mp4", "id": "one"}', "line 2: id 'one' is that of another video"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, message):
    path = tmp_path / "a.jsonl"
    path.write_text('{"video": "one.mp4", "id": "one"}\n' + line)
    with pytest.raises(ValueError, match="a.jsonl, line 2") as error:
        read_list(path)
    assert message in str(error.value)


def test_an_empty_list_is_an_error(tmp_path):
    (tmp_path / "a.txt").write_text("\n")
    with pytest.raises(ValueError, match="names no video"):
        read_list(tmp_path / "a.txt")


# ---- captions


def test_of_equal_captions_the_first_stays_and_videos_without_one_all_stay():
    found = select(videos("A dog runs.", "", "a  dog RUNS", "a cat", ""))
    assert names(found) == ["v0", "v1", "v3", "v4"] and found.duplicates == 1


@pytest.mark.parametrize(
    ("caption", "phrases"),
    [
        ("A black dog runs on the wet beach.", {"black dog", "wet beach"}),
        ("Two women are walking through a crowded street market", {"women", "crowded street market"}),
        ("Aerial view of the city's skyline at night, 4k", {"aerial", "city skyline", "night", "4k"}),
        ("Dogs and grass", {"dog", "grass"}),
        ("美しい海", {"美しい海"}),
        ("", set()),
        ("of the and", set()),
    ],
)
def test_phrases_stand_between_words_that_name_nothing(caption, phrases):
    assert noun_phrases(caption) == phrases


def test_frequent_phrases_are_thinned_to_the_limit_and_rare_ones_stay():
    common = [f"a red car near house {i}x{i}" for i in range(50)]
    rare = [f"a purple zebra{i} in the snow" for i in range(3)]
    found = select(videos(*common, *rare, "unlike all others"), phrase_limit=10)

    kept = names(found)
    assert len([name for name in kept if int(name[1:]) < 50]) == 10
    assert kept[-4:] == ["v50", "v51", "v52", "v53"] and found.thinned == 40
    assert kept == sorted(kept, key=lambda name: int(name[1:]))
    assert names(select(videos(*common, *rare, "unlike all others"), phrase_limit=10)) == kept
    assert select(videos(*common, *rare), phrase_limit=None).thinned == 0


# ---- tasks


def test_tasks_and_shares_are_the_papers():
    shares = Counter()
    for task in TASKS:
        shares[task.family] += task.share
    assert shares == {
        "perception": 468,
        "general": 928,
        "temporal": 300,
        "reasoning": 353,
        "formatting": 20,
    }
    assert PROMPTS.tasks["choice_qa"].ending.strip() == "Answer with only one letter"


def test_pairs_have_the_shares_and_a_video_gets_different_tasks():
    counts: Counter[str] = Counter()
    for i in range(1200):
        drawn = tasks_of(Video(f"v{i}", ""), TASKS, 3)
        assert len({task.name for task in drawn}) == 3
        counts.update({task.name: task.pairs for task in drawn})

    whole, share = sum(counts.values()), sum(task.share for task in TASKS)
    for task in TASKS:
        assert counts[task.name] / whole == pytest.approx(task.share / share, abs=0.015), task.name


@pytest.mark.parametrize("number", range(1, len(TASKS) + 1))
def test_any_number_of_tasks_can_be_asked_for(number):
    chances = inclusion_chances(TASKS, number)
    assert sum(chances.values()) == pytest.approx(number) and max(chances.values()) <= 1
    per_share = {chances[task.name] * task.pairs / task.share for task in TASKS if chances[task.name] < 1}
    assert max(per_share, default=1) == pytest.approx(min(per_share, default=1))
    assert all(len(tasks_of(Video(f"v{i}", ""), TASKS, number)) == number for i in range(50))


def test_tasks_are_chosen_by_name_or_family():
    assert [task.name for task in PROMPTS.only(["formatting", "story"])] == [
        "story",
        "concise_qa",
        "choice_qa",
    ]
    with pytest.raises(ValueError, match="no task or family 'storry': did you mean 'story'"):
        PROMPTS.only(["storry"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"share": 0}, "share is 0: expected a number above 0"),
        ({"pairs": 0}, "pairs is 0"),
        ({"format": "xml"}, "format is 'xml': expected one of text, pairs, choices"),
        ({"family": "other"}, "family is 'other'"),
        ({"format": "text"}, "questions is empty"),
        ({"prompts": "a"}, "expected family, share, prompt"),
        ({"questions": "Which?"}, "questions is 'Which?': expected a list"),
        ({"max_words": "8"}, "max_words is '8'"),
    ],
)
def test_a_wrong_task_of_a_file_is_named(tmp_path, change, message):
    values = yaml.safe_load(PROMPTS_FILE.read_text())
    values["tasks"]["main_entities"] |= change
    (tmp_path / "own.yaml").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="own.yaml: task 'main_entities'") as error:
        read_prompts(tmp_path / "own.yaml")
    assert message in str(error.value)


@pytest.mark.parametrize("change", [{"vague": "a person"}, {"refusals": [1]}, {"shapes": {"pairs": ""}}])
def test_a_wrong_text_that_tasks_share_is_named(tmp_path, change):
    values = yaml.safe_load(PROMPTS_FILE.read_text())
    (tmp_path / "own.yaml").write_text(json.dumps(values | change))
    with pytest.raises(ValueError, match=f"own.yaml: {next(iter(change))} "):
        read_prompts(tmp_path / "own.yaml")


@pytest.mark.parametrize("text", ["[]", "tasks: 1", "{", "\xff"])
def test_what_is_no_file_of_prompts_is_refused(tmp_path, text):
    (tmp_path / "own.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match="own.yaml"):
        read_prompts(tmp_path / "own.yaml")
