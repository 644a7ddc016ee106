"""The noun phrases of a caption, by a rule in place of a parser.

A phrase is what stands between function words, verbs in "-ing" and punctuation: "a black dog runs on the wet
beach" has "black dog runs" and "wet beach"; of a phrase the last three words count, without plural "s". That
is coarser than a parser's noun chunks. It serves to find captions that say the same thing often, for which
the frequency of such phrases is enough; it costs no model of a language, and 100,000 captions take seconds.

The rule is English. A caption in another script, or without one of its words, is a phrase as it stands.
"""

import re

WORDS = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|[^\w\s]")
LONGEST = 3  # words of a phrase

WORD_LIST = """
a about above across after against all along also am among an and another any are around as at away back
be because been before behind being below beside between beyond both but by can could did do does down
during each either every few for from front had has have he her here him his how i if in inside into is
it its just many may more most much must near no not of off on one onto or other our out outside over own
per several she should since so some such than that the their them then there these they this those
through to together top toward towards two three four five under until up upon us very was we well were
what when where which while who whom whose why will with within without would you your be being become
becomes come comes fly flies get gets give gives go goes have hold holds look looks make makes move moves
play plays run runs see seen show shows shown sit sits stand stands take takes turn turns use uses used
walk walks work works video footage clip shot scene view close closeup
"""
FUNCTION_WORDS = frozenset(WORD_LIST.split())  # and verbs and nouns that say nothing of a video


def noun_phrases(caption: str) -> set[str]:
    """The phrases of a caption, in small letters.

    Numbers are words. An empty caption has no phrase.
    """
    phrases = set()
    run: list[str] = []
    for word in [*WORDS.findall(caption.casefold()), "."]:
        if _is_content(word):
            run.append(_singular(word))
            continue
        if run:
            phrases.add(" ".join(run[-LONGEST:]))
        run = []
    return phrases


def _is_content(word: str) -> bool:
    if not word[0].isalnum() or word in FUNCTION_WORDS:
        return False
    return not (word.endswith("ing") and len(word) > 5)  # "running", but not "ring" or "king"


def _singular(word: str) -> str:
    """Without a plural's or a possessive's "s"."""
    word = re.split("['’]", word)[0]
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is"))
    return word[:-1] if is_plural else word
