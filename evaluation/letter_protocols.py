"""How public evaluation code reads the letter of an answer, one function a protocol.

Each function takes an answer and the choices (letter -> option text) and returns what the public function
returns, with two differences: where that one draws a random letter or raises, the reading is "". Their known
defects are kept, because published numbers rest on them. `strict_letter.py` has our own rules.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from string import ascii_uppercase

UNPARSED = ""
Choices = Mapping[str, str]  # letter -> option text

MMMU_EDGES = ",.!?;:'"  # stripped one after the other

# two prefixes run together, because a comma is missing between two literals
VLMEVALKIT_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option isThe correct option is",
    "Best answer:Best option:",
    "Answer:",
    "Option:",
)
VIDEOMME_PREFIXES = (*VLMEVALKIT_PREFIXES, "The correct answer", "The correct option")
LMMS_LONGVIDEOBENCH_PREFIXES = (
    "The best answer is",
    "The correct answer is",
    "The answer is",
    "The answer",
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def letter_choices(options: Sequence[str]) -> dict[str, str]:
    """Letter -> option, from A on."""
    return {chr(ord("A") + index): option for index, option in enumerate(options)}


# ---------------------------------------------------------------- the first capital letter


def videomme(answer: str, choices: Choices) -> str:
    """The first of A to D after known prefixes are removed, whatever word it is part of.

    Source: thanku-all/parse_answer, `eval_your_results.py`, `extract_characters_regex` (Video-MME's scorer).
    """
    return _first_capital(answer, VIDEOMME_PREFIXES, "ABCD")


def vlmevalkit_videomme(answer: str, choices: Choices) -> str:
    """As `videomme`, with two prefixes fewer.

    Source: open-compass/VLMEvalKit, `vlmeval/dataset/utils/videomme.py`, `extract_characters_regex`.
    """
    return _first_capital(answer, VLMEVALKIT_PREFIXES, "ABCD")


def vlmevalkit_longvideobench(answer: str, choices: Choices) -> str:
    """The first of A to E after known prefixes are removed, also where only four options exist.

    Source: open-compass/VLMEvalKit, `vlmeval/dataset/utils/longvideobench.py`, `extract_characters_regex`.
    """
    return _first_capital(answer, VLMEVALKIT_PREFIXES, "ABCDE")


def lmms_longvideobench(answer: str, choices: Choices) -> str:
    """The first of A to E after known prefixes are removed; the public function draws where there is none.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/longvideobench/utils.py`, `parse_multi_choice_response`.
    """
    return _first_capital(answer, LMMS_LONGVIDEOBENCH_PREFIXES, "ABCDE")


def _first_capital(answer: str, prefixes: tuple[str, ...], letters: str) -> str:
    text = answer.strip()
    for prefix in prefixes:
        text = text.replace(prefix, "")

    return next((character for character in text if character in letters), UNPARSED)


# ---------------------------------------------------------------- the best of several forms

# forms of a letter and how much they are trusted; of equal ones, the last in the text wins
MCQ_FORMS = {"({})": 6, "{}.": 5, "{}:": 4, "{})": 3, "{} ": 2}
MCQ_START = 10
MCQ_END = 9
MCQ_PHRASE = 7

MCQ_SUBJECTS = (
    *("answer", "correct answer", "best answer"),
    *("correct option", "best option"),
    *("choice", "correct choice"),
)
MCQ_PHRASES = (
    *(f"{subject} is" for subject in MCQ_SUBJECTS),
    *(f"the {subject} is" for subject in MCQ_SUBJECTS),
    *("i choose", "i select", "i pick", "my answer is", "my choice is"),
    *("옵션", "정답은", "답은", "답:"),
    *("答案是", "答案为", "选"),
    "答えは",
)


def lmms_mcq(answer: str, choices: Choices) -> str:
    """Of all forms in which A to D occur, the most trusted; any capital A to D where there is no form.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/_task_utils/mcq_extract.py`, `extract_mcq_answer`, with the
    choices A to D that its Video-MME and MLVU tasks pass.
    """
    text = answer.strip()
    if not text:
        return UNPARSED

    for mark in (*",.!?;:'", '"'):
        text = text.strip(mark)
    text = f" {text} "

    found = list(_mcq_readings(text, "ABCD"))
    if not found:
        found = [(0, text.rfind(letter), letter) for letter in "ABCD" if letter in text]
    return max(found, key=lambda reading: reading[:2])[2] if found else UNPARSED


def _mcq_readings(text: str, letters: str) -> Iterator[tuple[int, int, str]]:
    """(trust, position, letter) of each form of a letter in the text."""
    for form, trust in MCQ_FORMS.items():
        for letter in letters:
            position = text.rfind(form.format(letter))
            if position != -1:
                yield trust, position, letter

    for after in _ends_of_phrases(text.lower()):
        for letter in letters:
            position = text.find(letter, after)
            if position != -1:
                yield MCQ_PHRASE, position, letter

    bare = text.strip()
    for letter in letters:
        if bare.startswith(letter) and not bare[1:2].isalpha():
            yield MCQ_START, 0, letter
        if bare.endswith(letter) and not bare[-2:-1].isalpha():
            yield MCQ_END, len(text) - 1, letter


def _ends_of_phrases(lowered: str) -> Iterator[int]:
    """Where the first occurrence of each phrase ends."""
    for phrase in MCQ_PHRASES:
        start = lowered.find(phrase)
        if start != -1:
            yield start + len(phrase)


# ---------------------------------------------------------------- MMMU's parser and its relatives


def lmms_nextqa(answer: str, choices: Choices) -> str:
    """The last of the letters in the first form that occurs; else an option's text in a longer answer.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/nextqa/utils.py`, `parse_multi_choice_response`. The public
    function draws where nothing is found.
    """
    return _last_of_first_form(answer, _stripped(choices), ("({})", "{} ", "{}."))


def muirbench(answer: str, choices: Choices) -> str:
    """As `lmms_nextqa`, but a letter without brackets must be a word.

    Source: muirbench/MuirBench, `eval/utils/postprocess.py`, `parse_multi_choice_response`. The public
    function draws where nothing is found.
    """
    return _last_of_first_form(answer, choices, ("({})", " {} "))


def lmms_egoschema(answer: str, choices: Choices) -> str:
    """The letter in any form whose last occurrence is the earliest; else an option's text.

    Source: EvolvingLMMs-Lab/lmms-eval, `tasks/egoschema/utils.py`, `parse_multi_choice_response`. The public
    function draws where nothing is found.
    """
    text = _padded(answer)
    forms = {form.format(letter): letter for form in ("({})", "{} ", "{}.") for letter in choices}
    found = [form for form in forms if form in text]
    if found:
        return forms[min(found, key=text.rfind)]

    positions = _option_texts_in(text, _stripped(choices))
    return min(positions, key=positions.__getitem__) if positions else UNPARSED


def _last_of_first_form(answer: str, choices: Choices, forms: tuple[str, ...]) -> str:
    text = _padded(answer)

    for form in forms:
        found = [letter for letter in choices if form.format(letter) in text]
        if found:
            # letters without brackets are compared where they are words, in whichever form they were found
            compared = form if form == "({})" else " {} "
            return max(found, key=lambda letter: text.rfind(compared.format(letter)))

    positions = _option_texts_in(text, choices)
    return max(positions, key=positions.__getitem__) if positions else UNPARSED


def _padded(answer: str) -> str:
    for mark in MMMU_EDGES:
        answer = answer.strip(mark)
    return f" {answer} "


def _option_texts_in(text: str, choices: Choices) -> dict[str, int]:
    """Letter -> last position of its option's text, in answers of more than five words."""
    if len(text.split()) <= 5:
        return {}

    lowered = text.lower()
    positions = {letter: lowered.rfind(option.lower()) for letter, option in choices.items()}
    return {letter: position for letter, position in positions.items() if position != -1}


def _stripped(choices: Choices) -> dict[str, str]:
    return {letter: option.strip() for letter, option in choices.items()}


# ---------------------------------------------------------------- the first character, or an option's text


def internvl(answer: str, choices: Choices) -> str:
    """The only or first character, else the first option whose text the answer contains, else all of it.

    What it returns need not be a letter. Source: OpenGVLab/PVC, `eval/scienceqa/evaluate_scienceqa.py`,
    `post_process` (the same in its MMBench, SEED and MMMU scripts, and in OpenGVLab/InternVL's
    `eval/mmiu/evaluate_mmiu.py`). The public function raises where the answer is empty.
    """
    text = answer.strip()
    if len(text) <= 1:
        return text
    if text[0] in choices:
        return text[0]

    return next((letter for letter, option in choices.items() if option in text), text)


def internvl_mmmu_cot(answer: str, choices: Choices) -> str:
    """As `internvl`, of what follows the last `"Answer":`.

    Source: OpenGVLab/PVC, `eval/mmmu/evaluate_mmmu_cot.py`, `post_process`.
    """
    return internvl(answer.split('"Answer":')[-1], choices)


def internvl_new_scienceqa_post_process(answer: str, choices: Choices) -> str:
    """As `internvl`; then `x.` and `(x)` at the start are read too. An answer `(x` is unparsed.

    Source: OpenGVLab/InternVL, `eval/scienceqa/evaluate_scienceqa.py`, `post_process` (2025). The public
    function raises on two characters of which the first is an opening bracket.
    """
    text = answer.strip()
    reading = internvl(text, choices)
    if len(text) <= 1 or reading != text:
        return reading

    if text[1] == ".":
        return text[0]
    if text[0] == "(":
        if len(text) == 2:
            return UNPARSED
        if text[2] == ")":
            return text[1]
    return text


def lmms_muirbench(answer: str, choices: Choices) -> str:
    """The capital before a full stop at the start, else the answer as it is.

    It is compared without case and outer blanks. Source: EvolvingLMMs-Lab/lmms-eval,
    `tasks/muirbench/utils.py`, `MultiChoiceRegexFilter`.
    """
    match = re.match(r"\s*([A-Z])\.", answer)
    return match[1] if match else answer


def mmiu_strip(answer: str, choices: Choices) -> str:
    """The answer without full stops, commas and brackets at its ends; letters a to n are then accepted.

    Source: OpenGVLab/MMIU, `evaluate.py`, `remove_punctuation`.
    """
    return re.sub(r"^[.,()]+|[.,()]+$", "", answer.strip())


# ---------------------------------------------------------------- VLMEvalKit without a judge

NO_OPTION = "Z"  # the answer says that it cannot choose

INFER_FAILURE = "Failed to obtain answer via API"
INFER_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
INFER_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
INFER_STATEMENT = re.compile(r"answer\s+is\s+\**([ABCD])\**", re.IGNORECASE)
INFER_LAST_WORDS = 4


def vlmevalkit_can_infer(answer: str, choices: Choices) -> str:
    """The only letter that is a word among the last four, or the only option whose text occurs.

    "Z" is a refusal to choose. Source: open-compass/VLMEvalKit, `vlmeval/utils/matching_util.py`,
    `can_infer`; its False (a judge is asked, or the answer is wrong) is "".
    """
    return _infer_letter(answer, choices) or _infer_text(answer, choices)


def _infer_letter(answer: str, choices: Choices) -> str:
    if INFER_FAILURE in answer:
        return UNPARSED
    if any(refusal in answer for refusal in INFER_REFUSALS):
        return NO_OPTION

    words = answer.translate(INFER_BLANKS).split()
    named = [letter for letter in choices if letter in words]
    if len(named) == 1 and words.index(named[0]) >= len(words) - INFER_LAST_WORDS:
        return named[0]
    if not named and NO_OPTION in words:
        return NO_OPTION

    match = INFER_STATEMENT.search(answer)
    letter = match[1].upper() if match else UNPARSED
    return letter if letter in choices else UNPARSED


def _infer_text(answer: str, choices: Choices) -> str:
    lowered = answer.lower()
    if len(lowered) > 2 * sum(len(option) for option in choices.values()):
        return UNPARSED
    if any(letter not in ascii_uppercase for letter in choices):
        return UNPARSED  # the public function raises

    found = [letter for letter, option in choices.items() if option.lower() in lowered]
    return found[0] if len(found) == 1 else UNPARSED


PROTOCOLS: dict[str, Callable[[str, Choices], str]] = {
    "videomme": videomme,
    "vlmevalkit_videomme": vlmevalkit_videomme,
    "vlmevalkit_longvideobench": vlmevalkit_longvideobench,
    "vlmevalkit_can_infer": vlmevalkit_can_infer,
    "lmms_mcq": lmms_mcq,
    "lmms_longvideobench": lmms_longvideobench,
    "lmms_nextqa": lmms_nextqa,
    "lmms_egoschema": lmms_egoschema,
    "lmms_muirbench": lmms_muirbench,
    "muirbench": muirbench,
    "internvl": internvl,
    "internvl_mmiu_post_process": internvl,
    "internvl_mmmu_cot": internvl_mmmu_cot,
    "internvl_new_scienceqa_post_process": internvl_new_scienceqa_post_process,
    "mmiu_strip": mmiu_strip,
}
