"""The tasks of the synthetic data: how each is asked, in training and held out, and how it is answered.

The only place where the forms of questions stand. `{it}` and `{other}` are shapes ("red circle"), `{an_it}`
one with its article, `{things}` several ("red shapes"), `{word}` and `{other_word}` labels of bars. A
phrasing that is held out is made of words that occur in training: a model that knows nothing but these scenes
can understand it, if it has learnt what words mean and not whole sentences. What is asked about is left to
`image_tasks.py` and `video_tasks.py`.
"""

from typing import NamedTuple

from pvc.tiny.synthetic.scenes import COLOURS, KINDS

WORD = "[a-z]{3,8}"
COLOUR = "|".join(COLOURS)
KIND = "|".join(KINDS)
SPEC = f"({COLOUR}) ({KIND})"
YES_NO = "yes|no"
NTH = "first|second|third"


class Task(NamedTuple):
    """How a task is asked and answered: `answers` is a regular expression of the whole answer."""

    group: str
    media: str  # "image", "images" or "video"
    answers: str
    training: tuple[str, ...]
    held_out: tuple[str, ...]


TASKS = {
    "word": Task(
        group="reading",
        media="image",
        answers=WORD,
        training=(
            "What word is written in the picture?",
            "Read the word in the picture.",
            "Which word do you see?",
            "What does the picture say?",
            "What is the word?",
        ),
        held_out=("Which word is written in the picture?", "Read the word."),
    ),
    "number": Task(
        group="reading",
        media="image",
        answers="[0-9]{1,4}",
        training=(
            "What number is written in the picture?",
            "Read the number in the picture.",
            "Which number do you see?",
            "What number does the picture show?",
            "What is the number?",
        ),
        held_out=("Which number is written in the picture?", "Read the number."),
    ),
    "word_at": Task(
        group="reading",
        media="image",
        answers=WORD,
        training=(
            "What word is written {at}?",
            "Read the word {at}.",
            "Which word do you see {at}?",
            "What does the picture say {at}?",
        ),
        held_out=("Which word is written {at}?", "What is the word {at}?"),
    ),
    "read_all": Task(
        group="telling all",
        media="image",
        answers=f"({WORD}|[0-9]{{1,4}})( ({WORD}|[0-9]{{1,4}}))*",
        training=(
            "Read all that is written.",
            "Read all of the picture.",
            "What is written in the picture?",
            "What are the words and numbers in the picture?",
            "Read all the words.",
            "What do you read in the picture?",
        ),
        held_out=("What is written?", "Read all the words and numbers in the picture."),
    ),
    "name_all": Task(
        group="telling all",
        media="image",
        answers=f"{SPEC}(, {SPEC})*",
        training=(
            "Name all shapes from left to right.",
            "Which shapes are in the picture, from left to right?",
            "What are the shapes from left to right?",
            "Name the shapes from left to right.",
            "What do you see from left to right?",
            "In the picture, which shapes are there from left to right?",
        ),
        held_out=("Name the shapes in the picture from left to right.", "What is seen from left to right?"),
    ),
    "read_chart": Task(
        group="telling all",
        media="image",
        answers="[a-z]{3,4} [0-9]{1,2}(, [a-z]{3,4} [0-9]{1,2})*",
        training=(
            "Name all bars and their values.",
            "What are the bars and their values?",
            "Read all bars from left to right.",
        ),
        held_out=("Read the bars and their values.", "Which bars and values are in the picture?"),
    ),
    "tell_order": Task(
        group="telling all",
        media="video",
        answers=f"{SPEC}(, {SPEC})*",
        training=(
            "Name all shapes in the order in which they appear.",
            "What appears, from first to last?",
            "Which shapes appear in the video, from first to last?",
            "Name all shapes from first to last.",
            "Which shapes appear in the video, in which order?",
            "In which order do the shapes appear?",
        ),
        held_out=("Name the shapes from first to last.", "Which shapes appear, in which order?"),
    ),
    "colour": Task(
        group="shapes",
        media="image",
        answers=COLOUR,
        training=(
            "What colour is the {kind}?",
            "Which colour is the {kind}?",
            "What is the colour of the {kind}?",
            "Which colour does the {kind} have?",
            "Name the colour of the {kind}.",
            "In the picture, what colour is the {kind}?",
            "What is the colour of the {kind} in the picture?",
        ),
        held_out=("What colour does the {kind} have?", "Which is the colour of the {kind}?"),
    ),
    "shape": Task(
        group="shapes",
        media="image",
        answers=KIND,
        training=(
            "What shape is {colour}?",
            "Which shape is {colour}?",
            "What is the {colour} shape?",
            "Name the {colour} shape.",
            "In the picture, which shape is {colour}?",
            "What is the shape that you see in {colour}?",
        ),
        held_out=("Which is the {colour} shape?", "What is the shape that is {colour}?"),
    ),
    "count": Task(
        group="shapes",
        media="image",
        answers="[0-5]",
        training=(
            "How many {things} are there?",
            "How many {things} are in the picture?",
            "How many {things} do you see?",
            "Count the {things}.",
            "What is the number of {things}?",
            "In the picture, how many {things} are there?",
            "Count all {things}.",
            "Count the {things} that you see.",
            "How many {things} does the picture have?",
        ),
        held_out=("How many {things} does the picture show?", "Count the {things} in the picture."),
    ),
    "exists": Task(
        group="shapes",
        media="image",
        answers=YES_NO,
        training=(
            "Is there {an_it}?",
            "Is there {an_it} in the picture?",
            "Do you see {an_it}?",
            "Does the picture have {an_it}?",
            "In the picture, is there {an_it}?",
            "Do you see {an_it} in the picture?",
            "In the picture, do you see {an_it}?",
            "Is {an_it} there?",
        ),
        held_out=("Does the picture show {an_it}?", "Is {an_it} in the picture?"),
    ),
    "relation": Task(
        group="shapes",
        media="image",
        answers="left|right|above|below",
        training=(
            "Is the {it} left, right, above or below, seen from the {other}?",
            "On which side of the {other} is the {it}?",
            "Seen from the {other}, where is the {it}?",
            "Where do you see the {it}, seen from the {other}?",
        ),
        held_out=(
            "Where is the {it}, seen from the {other}?",
            "On which side of the {other} do you see the {it}?",
        ),
    ),
    "place": Task(
        group="shapes",
        media="image",
        answers="(top|bottom) (left|right)|middle",
        training=(
            "Where is the {it}?",
            "Where in the picture is the {it}?",
            "In which part of the picture is the {it}?",
            "Name the place of the {it}.",
            "Where do you see the {it}?",
            "Where do you see the {it} in the picture?",
            "In the picture, where is the {it}?",
            "What is the place of the {it} in the picture?",
            "In which place do you see the {it}?",
        ),
        held_out=("Where is the {it} in the picture?", "In which place is the {it}?"),
    ),
    "chart_highest": Task(
        group="charts",
        media="image",
        answers=WORD,
        training=(
            "Which bar is the highest?",
            "What is the name of the highest bar?",
            "Which bar has the most?",
            "Name the highest bar.",
        ),
        held_out=("Which is the highest bar?", "What bar is the highest?"),
    ),
    "chart_value": Task(
        group="charts",
        media="image",
        answers="[0-9]{1,2}",
        training=(
            "What is the value of {word}?",
            "What value does {word} have?",
            "How much is {word}?",
            "Read the value of {word}.",
            "Which value does the bar {word} have?",
            "What is the value of {word} in the picture?",
        ),
        held_out=("Which value does {word} have?", "What is the value of the bar {word}?"),
    ),
    "chart_compare": Task(
        group="charts",
        media="image",
        answers=YES_NO,
        training=(
            "Is {word} higher than {other_word}?",
            "Is the bar {word} higher than the bar {other_word}?",
            "Is the value of {word} higher than that of {other_word}?",
            "Does {word} have more than {other_word}?",
            "Is {word} the higher of {word} and {other_word}?",
            "Does the bar {word} have more than the bar {other_word}?",
        ),
        held_out=(
            "Is the bar of {word} higher than that of {other_word}?",
            "Does {word} have the higher value than {other_word}?",
        ),
    ),
    "motion": Task(
        group="motion",
        media="video",
        answers="left|right|up|down",
        training=(
            "In which direction does the {it} move?",
            "Which way does the {it} move?",
            "Where does the {it} move to?",
            "What is the direction of the {it}?",
            "Does the {it} move left, right, up or down?",
            "In the video, which way does the {it} move?",
            "What is the way of the {it}?",
            "In what direction does the {it} move?",
            "Which way does the {it} move in the video?",
        ),
        held_out=("In which way does the {it} move?", "What direction does the {it} move to?"),
    ),
    "moving_shape": Task(
        group="motion",
        media="video",
        answers=SPEC,
        training=(
            "Which shape moves?",
            "What moves in the video?",
            "Which shape does not stay in its place?",
            "Name the shape that moves.",
            "In the video, which shape moves?",
            "What is it that moves?",
        ),
        held_out=("What is the shape that moves?", "Which shape moves in the video?"),
    ),
    "order_nth": Task(
        group="order",
        media="video",
        answers=SPEC,
        training=(
            "Which shape appears {nth}?",
            "What appears {nth} in the video?",
            "Which shape do you see {nth}?",
            "Name the shape that appears {nth}.",
            "In the video, what appears {nth}?",
            "Which shape appears {nth} in the video?",
            "What is the {nth} shape?",
        ),
        held_out=("What is the shape that appears {nth}?", "Which is the {nth} shape in the video?"),
    ),
    "order_before": Task(
        group="order",
        media="video",
        answers=YES_NO,
        training=(
            "Does the {it} appear before the {other}?",
            "Is the {it} there before the {other}?",
            "Do you see the {it} before the {other}?",
            "Does the {it} come before the {other}?",
            "In the video, is the {it} there before the {other}?",
            "In the video, do you see the {it} before the {other}?",
            "Does the {it} appear before the {other} in the video?",
            "In the video, does the {it} come before the {other}?",
            "Is the {it} in the video before the {other}?",
        ),
        held_out=(
            "Is the {it} seen before the {other}?",
            "In the video, does the {it} appear before the {other}?",
        ),
    ),
    "colour_change": Task(
        group="order",
        media="video",
        answers=COLOUR,
        training=(
            "Which colour comes right {when} {colour}?",
            "What colour is the {kind} right {when} it is {colour}?",
            "Which colour does the {kind} have right {when} {colour}?",
            "Name the colour that comes right {when} {colour}.",
            "What colour comes right {when} {colour}?",
            "In the video, which colour comes right {when} {colour}?",
            "What is the colour that the {kind} has right {when} {colour}?",
        ),
        held_out=(
            "What is the colour right {when} {colour}?",
            "Which colour is the {kind} right {when} {colour}?",
        ),
    ),
    "count_blinks": Task(
        group="counting",
        media="video",
        answers="[1-4]",
        training=(
            "How many times does the {it} appear?",
            "How many times do you see the {it}?",
            "Count how many times the {it} appears.",
            "How many times does the {it} come?",
            "In the video, how many times does the {it} appear?",
            "How many times do you see the {it} in the video?",
            "Count the times that you see the {it}.",
        ),
        held_out=("Count the times the {it} appears.", "How many times does the {it} appear in the video?"),
    ),
    "count_appear": Task(
        group="counting",
        media="video",
        answers="[0-4]",
        training=(
            "How many {things} appear?",
            "How many {things} appear in the video?",
            "How many {things} come in all?",
            "Count the {things} that appear.",
            "In the video, how many {things} appear?",
            "How many {things} do you see in the video?",
            "Count the {things} in all.",
            "How many {things} does the video have?",
        ),
        held_out=("How many {things} does the video show?", "Count the {things} in the video."),
    ),
    "same": Task(
        group="several pictures",
        media="images",
        answers=YES_NO,
        training=(
            "Are the two pictures the same?",
            "Do the two pictures show the same?",
            "Is the second picture the same as the first?",
            "Do you see the same in the two pictures?",
        ),
        held_out=("Is the first picture the same as the second?", "Are the pictures the same?"),
    ),
    "more": Task(
        group="several pictures",
        media="images",
        answers=NTH,
        training=(
            "Which picture has the most {things}?",
            "In which picture are the most {things}?",
            "Which of the pictures has the most {things}?",
            "In which picture do you see the most {things}?",
        ),
        held_out=(
            "Which picture shows the most {things}?",
            "In which of the pictures are the most {things}?",
        ),
    ),
    "which_picture": Task(
        group="several pictures",
        media="images",
        answers=NTH,
        training=(
            "Which picture shows {an_it}?",
            "In which picture is the {it}?",
            "In which picture do you see {an_it}?",
            "Which of the pictures has {an_it}?",
        ),
        held_out=("Which picture has {an_it}?", "In which of the pictures is the {it}?"),
    ),
}


def phrasings(task: str, *, held_out: bool) -> tuple[str, ...]:
    """The ways of asking a task, each a format string."""
    return TASKS[task].held_out if held_out else TASKS[task].training
