"""Our own reading of a letter, the protocol `default`: strict, and never a guess.

An answer is normalised (NFKC; `<think>` blocks and markdown stars dropped), then read as the first of
1. a bare letter, in either case, with or without brackets, quotes and a mark around it;
2. the exact text of one option, without regard to case;
3. a statement ("the answer is D", "I choose D", "答案是D", "选D"), of which the last counts;
4. labels: `(D)` anywhere, `D.`, `D)`, `D:` or "Option D" at the start of a line, or a line of its own.
Several different letters, and a letter that is not offered, are unparsed. The article "A" (or the pronoun
"I") before a lower-case word is no letter.
"""

import re
import unicodedata
from collections.abc import Sequence
from string import ascii_letters, ascii_uppercase

UNPARSED = ""

LETTER_EDGES = " \t\r\n\"'“”‘’`_()[]{}<>.,:;!。、"  # around a bare letter
TEXT_EDGES = " \"'“”‘’`"  # around an option's text
TEXT_ENDS = " .,:;!。"  # after it

# a letter may touch Chinese, Japanese and Korean characters, but no other word character
_WORD = r"[^\W\u2e80-\u9fff\uac00-\ud7a3\uf900-\ufaff]"
_OPENERS = "[\"'“‘(\\[{]*"
_CLOSERS = "[\"'”’)\\]}]*"

# not the start of a word, of a possessive or of an abbreviation ("D.C.")
_LETTER = rf"([A-Za-z])(?!{_WORD})(?![-'’]{_WORD})(?![+#])(?!\.[A-Za-z](?![A-Za-z]))"

_ENGLISH = (
    r"\b(?:answer|option|choice)\s*(?:(?:is|would\s+be|should\s+be|must\s+be|will\s+be)\b\s*:?|[:=])",
    r"\bI(?:\s+would|\s+will|['’]d|['’]ll)?\s+(?:choose|select|pick)\b",
)
_CHINESE = (
    r"答案\s*(?:应该|应当|应)?\s*(?:就是|是|为|选)?\s*:?",
    r"选项\s*(?:应该|应当|应)?\s*(?:是|为|:)\s*:?",
    r"(?<![不别无])(?<!不能)(?<!不应)(?<!不该)(?<!不会)选择?\s*:?",
)
_NOUN = r"(?:(?:the\s+)?(?:option|choice|letter)\b\s*:?|选项\s*:?)?"

STATEMENT = re.compile(
    rf"(?:{'|'.join(_ENGLISH + _CHINESE)})\s*{_NOUN}\s*{_OPENERS}\s*{_LETTER}", re.IGNORECASE
)
BRACKETED = re.compile(rf"(?<!{_WORD})\(\s*([A-Za-z])\s*\)")
LINE_LABEL = re.compile(
    r"^[ \t]*(?:(?:option|choice|answer)\b[ \t]*|选项[ \t]*)?"
    rf"{_OPENERS}{_LETTER}(?:[\"'”’\]]*[).:]|{_CLOSERS}[ \t]*$)",
    re.IGNORECASE | re.MULTILINE,
)
ANOTHER = re.compile(
    rf"{_CLOSERS}[.:]?\s*(?:[,/&、]|\bor\b|\band\b|或|和|与|及)\s*{_NOUN}\s*{_OPENERS}{_LETTER}",
    re.IGNORECASE,
)

FOLLOWING = re.compile(r"[ \t]+(\S)")


def read_strict_letter(answer: str, options: Sequence[str]) -> str:
    """The letter that an answer names beyond doubt, in upper case; "" where there is none.

    `options` are the option texts without letters. Of more than 26, the first 26 have letters.
    """
    text = _normalise(answer)
    letters = _read_letters(text, options)

    if len(letters) != 1:
        return UNPARSED
    letter = letters.pop()
    return letter if letter in ascii_uppercase[: len(options)] else UNPARSED


def _read_letters(text: str, options: Sequence[str]) -> set[str]:
    """The letters, in upper case, that the first rule that applies finds."""
    bare = text.strip(LETTER_EDGES)
    if len(bare) == 1 and bare in ascii_letters:
        return {bare.upper()}

    same_text = _letters_of_text(text, options)
    if same_text:
        return same_text

    statements = _named_by(STATEMENT, text)
    if statements:
        return statements[-1]

    return set().union(*_named_by(BRACKETED, text), *_named_by(LINE_LABEL, text))


def _normalise(answer: str) -> str:
    text = unicodedata.normalize("NFKC", answer)
    return _without_thoughts(text).replace("*", "").strip()


def _without_thoughts(text: str) -> str:
    """The text outside `<think>` blocks.

    A block without a start began in the prompt; one without an end goes on to the end of the text.
    """
    *closed, rest = re.split("</think>", text, flags=re.IGNORECASE)
    parts = [re.split("<think>", part, maxsplit=1, flags=re.IGNORECASE) for part in closed]

    outside = [part[0] for part in parts if len(part) == 2]
    outside.append(re.split("<think>", rest, maxsplit=1, flags=re.IGNORECASE)[0])
    return "\n".join(outside)


def _letters_of_text(text: str, options: Sequence[str]) -> set[str]:
    """The options of this text without regard to case; where there are none, nor to the marks around it."""
    text = _fold(text)
    texts = {letter: _fold(_normalise(option)) for letter, option in zip(ascii_uppercase, options)}
    same = {letter for letter, option in texts.items() if option and option == text}
    if same:
        return same

    text = _without_edges(text)
    return {letter for letter, option in texts.items() if text and _without_edges(option) == text}


def _fold(text: str) -> str:
    return " ".join(text.casefold().split())


def _without_edges(text: str) -> str:
    return text.strip(TEXT_EDGES).rstrip(TEXT_ENDS).rstrip(TEXT_EDGES)


def _named_by(pattern: re.Pattern[str], text: str) -> list[set[str]]:
    """The letters of each match: its own, and one that "or", "and" or a comma adds to it."""
    named = []
    for match in pattern.finditer(text):
        if _is_word(match[1], text, match.end(1)):
            continue
        letters = {match[1].upper()}

        another = ANOTHER.match(text, match.end(1))
        if another and not _is_word(another[1], text, another.end(1)):
            letters.add(another[1].upper())
        named.append(letters)
    return named


def _is_word(letter: str, text: str, end: int) -> bool:
    """Whether "A" or "I" is followed by a lower-case word on its line: an article or a pronoun."""
    if letter not in "AaIi":
        return False

    following = FOLLOWING.match(text, end)
    return following is not None and following[1].islower()
