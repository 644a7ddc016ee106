"""Pieces that the prompts of several tasks share. Pure functions of text."""

from collections.abc import Sequence
from string import ascii_uppercase

DYNAMIC_VLM_LETTER = "Answer with only one letter"  # arXiv 2412.09530, table of synthetic tasks
SINGLE_WORD = "Answer the question using a single word or phrase."
ANSWER_LETTER = "Answer with the option's letter from the given choices directly."
ANSWER_LETTER_CN = "请直接回答选项字母。"


def lettered(options: Sequence[str], form: str = "{letter}. {option}") -> str:
    """The options, one a line, with letters from A."""
    pairs = zip(ascii_uppercase, options, strict=False)
    return "\n".join(form.format(letter=letter, option=option) for letter, option in pairs)


def frame_lines(frames: int, form: str = "Frame{number}: <image>\n") -> str:
    """A line with a placeholder for each frame, numbered from 1."""
    return "".join(form.format(number=number) for number in range(1, frames + 1))


def dynamic_vlm_lines(frames: int) -> str:
    """Frames as Dynamic-VLM has them: `1s: <image>; 2s: <image>; ` and a line break; of one its bare mark."""
    if frames == 1:
        return "<image>"
    return frame_lines(frames, "{number}s: <image>; ") + "\n"


def image_lines(images: int, form: str = "Image-{number}: <image>\n") -> str:
    """A line with a placeholder for each image, numbered from 1."""
    return frame_lines(images, form)
