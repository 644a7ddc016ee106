"""Parts of the engine alone: pieces of text, sampling, prefixes, who goes into a batch, metrics."""

import pytest
import torch

from pvc.conversation import AnswerTokenizer
from pvc.serving.answers import AnswerText
from pvc.serving.batch import Abandoned, BatchAnswerer
from pvc.serving.engine import choose
from pvc.serving.limits import Limits
from pvc.serving.metrics import SIZES, Metrics
from pvc.serving.prefixes import Prefix, PrefixStore, common_length
from pvc.serving.prompts import Prompt
from pvc.serving.requests import Sampling
from pvc.serving.sampling import RowSampler, nucleus


@pytest.fixture(scope="module")
def answerer() -> BatchAnswerer:
    from servers import talker

    model, processor = talker()
    return BatchAnswerer(model, processor.tokenizer, PrefixStore(2**24))


def prompt(answerer: BatchAnswerer, text: str) -> Prompt:
    ids = torch.tensor(answerer._tokenizer(text).input_ids)
    return Prompt(ids, ids, [])


def row(answerer: BatchAnswerer, text: str, given: list[str], **sampling):
    return answerer.row(prompt(answerer, text), Sampling(**{"max_tokens": 12} | sampling), given.append)


def answers(answerer: BatchAnswerer, texts: list[str], **sampling) -> list[str]:
    pieces: list[list[str]] = [[] for _ in texts]
    rows = [row(answerer, text, given, **sampling) for text, given in zip(texts, pieces)]
    for one in rows:
        answerer.look_up(one)
    answerer.answer(rows)
    return ["".join(given) for given in pieces]


# ---- text


class Letters:
    """Decodes ids as bytes of UTF-8."""

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def pieces_of(text: str, *stops: str) -> tuple[list[str], bool]:
    answer = AnswerText(Letters(), stops)
    pieces = []
    for byte in text.encode():
        if not answer.is_stopped:
            pieces.append(answer.take(byte))
    return [*pieces, answer.end()], answer.is_stopped


@pytest.mark.parametrize("text", ["red", "two words", "grün 😀 ☃", "a\n\nb", "e\u0301"])
def test_pieces_together_are_the_text_and_no_piece_has_half_a_character(text):
    pieces, _ = pieces_of(text)
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_white_space_around_an_answer_is_left_out():
    assert "".join(pieces_of("  \n red one \n ")[0]) == "red one"


@pytest.mark.parametrize(
    "text, expected", [("abcSTOPd", "abc"), ("STOP", ""), ("abST", "abST"), ("a STOP", "a")]
)
def test_a_stop_text_is_never_given_in_part(text, expected):
    pieces, is_stopped = pieces_of(text, "STOP", "never")
    assert "".join(pieces) == expected
    assert is_stopped == ("STOP" in text)


def test_bytes_that_are_no_character_come_at_the_end():
    answer = AnswerText(Letters(), ())
    assert [answer.take(x) for x in (97, 0xF0, 0x9F)] == ["a", "", ""]
    assert answer.end() == "\ufffd"


def test_words_of_the_tokenizer_come_as_it_decodes_them_at_once(answerer):
    ids = answerer._tokenizer("What colour is the circle, and how many are there?").input_ids
    answer = AnswerText(AnswerTokenizer(answerer._tokenizer), ())
    pieces = [answer.take(id) for id in ids] + [answer.end()]
    assert "".join(pieces) == AnswerTokenizer(answerer._tokenizer).decode(ids).strip()


# ---- sampling


def test_a_nucleus_has_the_likeliest_tokens_that_reach_its_share():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert torch.allclose(nucleus(logits, 0.7), torch.tensor([0.625, 0.375, 0, 0]))
    assert torch.allclose(nucleus(logits, 1.0), torch.tensor([0.5, 0.3, 0.15, 0.05]))
    assert nucleus(logits, 1e-6).tolist() == [1, 0, 0, 0]


def test_rows_are_drawn_as_often_as_their_probabilities_say_and_greedy_ones_not_at_all():
    logits = torch.tensor([0.6, 0.3, 0.1]).log().repeat(2, 1)
    sampler = RowSampler([Sampling(1, temperature=1.0, seed=0), Sampling(1)])
    drawn = torch.zeros(3)
    for _ in range(2000):
        scores = sampler(torch.zeros(2, 1), logits)
        drawn[scores[0].argmax()] += 1
        assert torch.equal(scores[1], logits[1])
    assert torch.allclose(drawn / 2000, torch.tensor([0.6, 0.3, 0.1]), atol=0.04)


# ---- batches


TEXTS = ["a", "a b c d e f", "What colour is the circle?", "a b c"]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 3}])
def test_a_row_is_answered_alike_alone_in_a_batch_and_from_a_known_prefix(sampling, answerer):
    answerer.store.clear()
    together = answers(answerer, TEXTS, **sampling)
    known = answers(answerer, TEXTS, **sampling)
    answerer.store.clear()
    alone = [answers(answerer, [text], **sampling)[0] for text in TEXTS]
    assert together == alone == known
    assert answers(answerer, [TEXTS[1], "other words"], **sampling)[0] == alone[1]  # one is known, one is not


def test_a_batch_whose_clients_have_gone_ends_between_two_layers(answerer):
    given: list[str] = []
    gone = row(answerer, "a b c", given)
    gone.cancelled.set()
    with pytest.raises(Abandoned):
        answerer.answer([gone])
    assert given == []

    other = row(answerer, "a b c", given)
    answerer.answer([gone, other])  # one that is left is answered
    assert other.finish_reason == "length" and len(given) > 1


def test_rows_go_together_where_they_have_about_as_much_to_compute(answerer):
    short, other, long = (row(answerer, "a " * n, []) for n in (5, 20, 900))
    assert choose([short, long, other], Limits(), answerer.span) == [short, other]
    assert choose([long, short], Limits(), answerer.span) == [long]
    assert choose([short, other], Limits(batch=1), answerer.span) == [short]
    assert choose([short, other], Limits(batch_tokens=50), answerer.span) == [short]


# ---- prefixes


def prefix(*keys: int) -> Prefix:
    layer = torch.zeros(1, 1, len(keys), 4)
    return Prefix(torch.tensor(keys), [(layer, layer)], range(100))


def test_the_longest_prefix_in_common_is_found_without_the_last_position():
    store = PrefixStore(10**6)
    store.put(prefix(1, 2, 3))
    store.put(prefix(1, 2, -5, -6, 7))
    assert store.longest(torch.tensor([1, 2, -5, 9]), range(100))[1] == 3
    assert store.longest(torch.tensor([1, 2, 3]), range(100))[1] == 2
    assert store.longest(torch.tensor([4, 2]), range(100)) == (None, 0)
    assert store.longest(torch.tensor([1, 2, 3, 4]), range(50)) == (None, 0)  # other angles
    assert common_length(torch.tensor([1, 2]), torch.tensor([1, 2, 3])) == 2


def test_a_longer_dialogue_takes_the_place_of_its_beginning():
    store = PrefixStore(10**6)
    store.put(prefix(1, 2))
    store.put(prefix(1, 2, 3))
    assert store.num_bytes == prefix(1, 2, 3).num_bytes
    store.put(prefix(1, 2))
    assert store.num_bytes == prefix(1, 2, 3).num_bytes


def test_what_was_used_longest_ago_goes_first():
    size = prefix(1, 2, 3).num_bytes
    store = PrefixStore(2 * size)
    for first in (1, 2):
        store.put(prefix(first, 8, 9))
    store.longest(torch.tensor([1, 8, 9, 9]), range(100))
    store.put(prefix(3, 8, 9))
    assert store.num_bytes == 2 * size
    assert store.longest(torch.tensor([1, 8, 9, 9]), range(100))[1] == 3
    assert store.longest(torch.tensor([2, 8, 9, 9]), range(100))[1] == 0
    store.put(prefix(*range(100)))  # larger than all the memory: not kept
    assert store.num_bytes == 2 * size


# ---- metrics


def test_metrics_are_counted_in_buckets_and_by_label():
    metrics = Metrics()
    for size in (1, 3, 40):
        metrics.observe("batch_size", size, SIZES)
    metrics.add("requests_total", code=200)
    metrics.add("requests_total", code=200)
    lines = metrics.text(cache_bytes=7).splitlines()
    for line in (
        'pvc_requests_total{code="200"} 2',
        "pvc_cache_bytes 7",
        'pvc_batch_size_bucket{le="1"} 1',
        'pvc_batch_size_bucket{le="4"} 2',
        'pvc_batch_size_bucket{le="+Inf"} 3',
        "pvc_batch_size_sum 44.000000",
        "pvc_batch_size_count 3",
    ):
        assert line in lines
