"""The text normaliser of the TextVQA server (EvalAI), with its quirks, as the released code has it."""

import re

# A form stands for itself with any one of its apostrophes left out: "dont", "couldnt've", "couldn'tve".
_CONTRACTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've
why'll why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're
you've
"""

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {"none": "0", **{word: str(number) for number, word in enumerate(_NUMBERS)}}

_ARTICLES = ("a", "an", "the")
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD = re.compile(r"\.(?!\d)")
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIODS_REMOVED = 32  # the released code passes a flag of this value as the count


def _contractions() -> dict[str, str]:
    pairs = {}
    for form in _CONTRACTED.split():
        for match in re.finditer("'", form):
            pairs[form[: match.start()] + form[match.end() :]] = form

    pairs["somebody'd"] = "somebodyd"  # written the other way round there
    return pairs


_CONTRACTIONS = _contractions()


def normalise(text: str) -> str:
    """Lower case, without articles and punctuation, numbers as digits, contractions with apostrophes."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    return without_articles(without_punctuation(text))


def without_punctuation(text: str) -> str:
    """Signs that touch a space anywhere are dropped, others become spaces. Periods before no digit go."""
    has_comma_in_number = _COMMA_IN_NUMBER.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        stands_alone = f"{sign} " in text or f" {sign}" in text or has_comma_in_number
        result = result.replace(sign, "" if stands_alone else " ")
    return _PERIOD.sub("", result, count=_PERIODS_REMOVED)


def without_articles(text: str) -> str:
    """The words in lower case: numbers as digits, no articles, contractions as they are spelt."""
    numbered = [_DIGITS.get(word, word) for word in text.lower().split()]
    words = [word for word in numbered if word not in _ARTICLES]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words)
