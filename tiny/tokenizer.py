"""Makes the tokenizer files of PVC-Tiny: `python -m pvc.tiny.tokenizer FOLDER`.

A SentencePiece BPE model of InternLM2's kind, trained on sentences which this file writes itself, from a
fixed seed: about images and videos, with random words and numbers to be read, the questions of the small
scenes, and the system messages of the prompt templates. Two runs give the same bytes. Layout of the ids:

    0 … 2     <unk>, <s>, </s>
    3 … 258   <0x00> … <0xFF>
    259 …     trained pieces, by merge, then single characters
    2023 …    [UNUSED_TOKEN_131] … [UNUSED_TOKEN_146], the last six under InternLM2's chat tokens
    2039 …    InternVL's media tokens, behind the SentencePiece model; 2048 ids in all

Pieces that are not whole words of those sentences are unused: a word without meaning comes letter by letter,
as it is read from an image.
"""

import argparse
import io
import json
import re
import string
import struct
from collections.abc import Iterator
from pathlib import Path
from random import Random

from sentencepiece import SentencePieceProcessor, SentencePieceTrainer

from pvc.conversation import get_conv_template
from pvc.tiny.synthetic.tasks import TASKS

TRAINED_PIECES = 2023
SPARE_PIECES = [f"[UNUSED_TOKEN_{n}]" for n in range(131, 147)]
CHAT_TOKENS = {
    "[UNUSED_TOKEN_141]": "<|plugin|>",
    "[UNUSED_TOKEN_142]": "<|interpreter|>",
    "[UNUSED_TOKEN_143]": "<|action_end|>",
    "[UNUSED_TOKEN_144]": "<|action_start|>",
    "[UNUSED_TOKEN_145]": "<|im_end|>",
    "[UNUSED_TOKEN_146]": "<|im_start|>",
}
MEDIA_TOKENS = [
    *("<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
]
MODEL_MAX_LENGTH = 8192

WORDS = {
    "colour": "red orange yellow green blue purple pink brown black white grey",
    "shape": "circle square triangle star cross heart diamond arrow ring rectangle ball line letter digit",
    "look": "small large big little tall short wide thin round bright dark light empty full open closed",
    "side": "left right top bottom middle corner centre",
    "relation": "above below inside outside beside behind between near under over",
    "direction": "left right up down forward backward",
    "motion": "moves rolls slides jumps turns spins falls rises grows shrinks stops starts appears "
    "disappears leaves enters crosses passes bounces swings waits",
    "pace": "slowly quickly twice once again together alone",
    "action": "walks runs eats drinks sits stands sleeps plays holds opens closes throws catches carries "
    "reads writes cooks cuts cleans washes drives rides climbs swims flies dances sings looks points",
    "number": "zero one two three four five six seven eight nine ten eleven twelve twenty hundred",
    "order": "first second third fourth fifth last next",
    "chart": "bar line pie column table chart graph axis legend title label row",
    "thing": "cat dog bird horse cow elephant car train plane bike boat truck tree flower house door window "
    "wall roof bridge book cup bottle plate bowl spoon table chair bed lamp clock phone computer camera "
    "bag hat shirt shoe coat umbrella key ball kite apple banana pizza cake",
    "other": "fish sheep bus box glass knife leaf grass bread water paper",
    "person": "person man woman boy girl child player driver worker friend",
    "place": "street road park field beach river sea mountain sky kitchen room office school shop city",
    "part": "head face hand arm leg foot eye hair wheel tail wing",
    "compare": "more less larger smaller taller shorter longer higher lower faster slower equal same",
    "time": "second minute hour day night morning evening",
    "month": "January February March April May June July August September October November December",
}
TEMPLATES = """\
What colour is the {shape}? The {shape} is {colour}.
What shape is {colour}? It is a {look} {colour} {shape}.
Is there a {colour} {shape} in the picture? Yes, there is. No, there is not.
Where is the {colour} {shape}? It is in the {side}, {relation} the {colour} {shape}.
How many {shape}s are in the image? There are {number} {shape}s. {digits}
How many {colour} {thing}s can you see? {number}
Which is {compare}, the {colour} {shape} or the {colour} {shape}? The {shape} on the {side} is {compare}.
The picture shows a {look} {colour} {thing} {relation} a {thing} on a {colour} background.
Describe the image in detail. The image shows {number} {thing}s and a {colour} {shape}.
A {person} with a {colour} {other} {action} {relation} the {place}. The {part} of the {thing} is {look}.
What is the {person} doing? The {person} {action} in the {place} and {action} {pace} with the {other}.
What text is written in the picture? It says {word}.
Read the word on the {side}. {word} {word}
What number is shown? {digits}
In which {order} frame does the {shape} change colour? It turns from {colour} to {colour}.
What happens in the video? A {colour} {shape} {motion} {pace} and then {motion} to the {direction}.
In which direction does the {colour} {shape} move? It {motion} {direction}.
How often does the {thing} jump in the video? {number} times.
How long is the video? It lasts {digits} {time}s. A {thing} appears after one {time} in the {side}.
What happens before the {shape} {motion}? After that, the {person} {action} and the {thing} {motion} {pace}.
Which {chart} has the highest value? The value of {word} is {digits}.
What is the value of the {colour} {chart} in {month}? {digits}%
What is the difference between {word} and {word}? {digits} - {digits} = {digits}
The {chart} shows the sales of {word} in {month} {digits}. The total is {digits}.{digits}
Answer the question with a single word, phrase or number. Answer with the letter of the right option.
Choose the best answer: (A) {colour} (B) {shape} (C) {thing} (D) {digits} Options: A. B. C. D.
Are the two images the same? No, the {order} image has {number} {shape}s, the {order} has {compare}.
What is different between the images? In the {order} image the {thing} is {compare} and {colour}.
Please describe the {order} picture and compare it with the {order} one. Explain why.
Do both videos show a {thing}? Who, when, where, why and how? I cannot see that {look} {part}.
Frame{digits}: Image-{digits}: video picture frame {digits}
You can read the text, count the objects and say what they are. user system assistant
"""
SENTENCES = 6000
READ_ALOUD = 3000  # lines of words and numbers without meaning
QUESTIONS = 60  # times that each form of a question is asked
SYSTEM_MESSAGES = 60  # times that each is repeated
TEMPLATE_NAMES = ("internlm2-chat", "internvl2_5")
ANSWERS = ("colour", "shape", "side", "relation", "direction", "order")  # kinds of words that begin answers
ROLES = {"system", "user", "assistant"}
SPACE = "\u2581"  # as SentencePiece writes it


def corpus() -> Iterator[str]:
    """The training text, line by line; the same each time."""
    random = Random(0)
    templates = TEMPLATES.splitlines()

    # sentences about scenes, then texts to be read
    for i in range(SENTENCES):
        yield re.sub(r"{(\w+)}", lambda slot: _word(slot[1], random), templates[i % len(templates)])
    for _ in range(READ_ALOUD):
        yield f"{_word('word', random)} {_word('digits', random)}"

    # questions and beginnings of answers, often
    for form in question_forms() * QUESTIONS:
        yield re.sub(r"{(\w+)}", lambda slot: _word("shape", random), form)
    yield from sorted(answer_starts() | ROLES) * QUESTIONS

    for name in TEMPLATE_NAMES:
        yield from [get_conv_template(name).system_message] * SYSTEM_MESSAGES
    yield " ".join(string.digits + string.ascii_letters + string.punctuation)


def question_forms() -> list[str]:
    """How the synthetic data are asked about, with slots."""
    return [form for task in TASKS.values() for form in task.training + task.held_out]


def answer_starts() -> set[str]:
    """The words that an answer of the synthetic data may begin with, but for words without meaning."""
    return {word for kind in ANSWERS for word in WORDS[kind].split()} | {"yes", "no"}


def whole_words() -> set[str]:
    """All words with a meaning: a piece is one of them after a space, or at the start of an answer."""
    system_messages = [get_conv_template(name).system_message for name in TEMPLATE_NAMES]
    texts = [*WORDS.values(), *TEMPLATES.splitlines(), *question_forms(), *system_messages]
    without_slots = re.sub(r"{\w+}s?", " ", " ".join(texts))
    plurals = " ".join(f"{word}s" for kind in ("shape", "thing") for word in WORDS[kind].split())
    words = set(re.findall(r"[A-Za-z]+", f"{without_slots} {plurals}"))
    starts = {word for word in words if word[0].isupper()} | answer_starts() | ROLES
    return {f"{SPACE}{word}" for word in words} | starts


def _word(kind: str, random: Random) -> str:
    """A random word of `WORDS[kind]`, a "word" of random letters, or the "digits" of a random number."""
    if kind == "digits":
        return str(random.randrange(10 ** random.randint(1, 4)))
    if kind == "word":
        return "".join(random.choice(string.ascii_lowercase) for _ in range(random.randint(3, 8)))
    return random.choice(WORDS[kind].split())


def train_model() -> bytes:
    """The SentencePiece model, a serialised `ModelProto`: the trained pieces, then the spare ones."""
    model = io.BytesIO()
    SentencePieceTrainer.train(
        sentence_iterator=corpus(),
        model_writer=model,
        model_type="bpe",
        vocab_size=TRAINED_PIECES,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,  # numbers are read digit by digit
        normalization_rule_name="identity",  # text comes back as it was: no spaces added or removed
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        num_threads=1,
        minloglevel=2,
    )

    # The trainer puts pieces of its user at the front, InternLM2 has them at the end. Messages of protobuf
    # may be joined as bytes: repeated fields, the pieces, are then appended. Reading and writing the sum
    # brings its fields into order.
    joined = _only_whole_words(model.getvalue()) + b"".join(map(_user_defined_piece, SPARE_PIECES))
    return SentencePieceProcessor(model_proto=joined).serialized_model_proto()


def _only_whole_words(model: bytes) -> bytes:
    """The serialised model with each piece of several letters that is not a whole word marked as unused.

    What merges into such a piece is split again, into pieces that are used: into letters.
    """
    words, changed, place = whole_words(), b"", 0
    while model[place] == 0x0A:  # pieces stand at the front: 0x0a, length, 0x0a, length of the text, text, …
        end = place + 2 + model[place + 1]
        fields = model[place + 2 : end]
        text = fields[2 : 2 + fields[1]].decode()
        letters = text.replace(SPACE, "")

        if len(text) > 1 and letters.isascii() and letters.isalpha() and text not in words:
            fields += b"\x18\x05"  # type: UNUSED; of two values, the last one counts
        changed += b"\x0a" + bytes([len(fields)]) + fields
        place = end

    return changed + model[place:]


def _user_defined_piece(name: str) -> bytes:
    """`ModelProto { pieces { piece: name, score: 0, type: USER_DEFINED } }` in protobuf's wire format.

    Each field: its number and kind in a byte, the length where it has one, the value.
    """
    text = name.encode()
    fields = b"\x0a" + bytes([len(text)]) + text + b"\x15" + struct.pack("<f", 0) + b"\x18\x04"
    return b"\x0a" + bytes([len(fields)]) + fields


def tokenizer_config() -> dict:
    """tokenizer_config.json: the special tokens and their ids, and the code that reads them."""
    names = ["<unk>", "<s>", "</s>"]
    ids = {name: id for id, name in enumerate(names)}
    for id, piece in enumerate(SPARE_PIECES, start=TRAINED_PIECES):
        if piece in CHAT_TOKENS:
            ids[CHAT_TOKENS[piece]] = id

    for id, name in enumerate(MEDIA_TOKENS, start=TRAINED_PIECES + len(SPARE_PIECES)):
        ids[name] = id

    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    return {
        "tokenizer_class": "InternLM2Tokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]},
        "unk_token": "<unk>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "</s>",
        "add_bos_token": True,
        "add_eos_token": False,
        "additional_special_tokens": [name for name in ids if name not in names],
        "added_tokens_decoder": {str(id): {"content": name, **flags} for name, id in ids.items()},
        "model_max_length": MODEL_MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }


def write_tokenizer(folder: str | Path) -> None:
    """Writes tokenizer.model and tokenizer_config.json into `folder`."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(train_model())
    config = json.dumps(tokenizer_config(), indent=2)
    (folder / "tokenizer_config.json").write_text(config + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the tokenizer files of PVC-Tiny.")
    parser.add_argument("folder", help="where to write them; the root of a clone has them already")
    write_tokenizer(parser.parse_args().folder)


if __name__ == "__main__":
    main()
