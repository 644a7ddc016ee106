"""`<Frame 3>` in questions and answers: which frames are named, and "frame of 3s" in its place.

Frames are shown to the trained model as "1s: <image>; 2s: <image>; …", so that a frame's number stands as its
second (in a video that was thinned too, as in the paper).
"""

import re

MARK = re.compile(r"<\s*frame\s*#?\s*(\d{1,6})\s*>", re.IGNORECASE)
# "<Frame 3-7>", "<Frame 3 to 7>", "<Frame 3 - Frame 7>", "<Frames 3 and 4>"
SEVERAL = re.compile(
    r"<\s*frames?\s*#?\s*(\d{1,6})\s*(-|–|—|to|and|,)\s*(?:frame\s*)?#?(\d{1,6})\s*>", re.IGNORECASE
)
BARE = re.compile(r"\bframes?\s*#?\s*\d{1,6}\b", re.IGNORECASE)
WORD = {"-": "to", "–": "to", "—": "to", ",": "and"}


def with_single_marks(text: str) -> str:
    """The text with each mark of several frames as marks of one: "<Frame 3> to <Frame 7>"."""

    def apart(match: re.Match[str]) -> str:
        first, word, last = match.groups()
        return f"<Frame {first}> {WORD.get(word, word.lower())} <Frame {last}>"

    return SEVERAL.sub(apart, text)


def marked_frames(text: str) -> list[int]:
    """Numbers of the frames that are marked, as `with_single_marks` writes them, in order."""
    return [int(number) for number in MARK.findall(text)]


def has_bare_frames(text: str) -> bool:
    """Whether frames are named without a mark, as "frame 3" or "Frames 3"."""
    return BARE.search(MARK.sub("", text)) is not None


def as_seconds(text: str) -> str:
    """The text with `<Frame 3>` as "frame of 3s", which is how the paper writes it."""
    return MARK.sub(lambda match: f"frame of {int(match[1])}s", text)


def names_a_frame(text: str) -> bool:
    """Whether a text has what `as_seconds` writes."""
    return re.search(r"\bframe of \d+s\b", text) is not None
