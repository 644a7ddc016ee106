"""The text of an answer, token by token.

    AnswerText.take(token) -> the piece that is certain by now

Pieces together are what `chat` returns: without control tokens, cut at the template's end of an answer, no
white space around it. What may yet become part of a stop text, a character of several tokens, or white space
at the end is held back.
"""

from collections.abc import Sequence

from pvc.conversation import AnswerTokenizer

UNFINISHED = "\ufffd"  # what decoders write for bytes that are no character yet


class AnswerText:
    """Decodes the tokens of one answer and finds the stop text that ends it.

    Args:
        stops: texts at which the answer ends; they are not part of it.
    """

    def __init__(self, tokenizer: AnswerTokenizer, stops: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._stops = [stop for stop in stops if stop]
        self._ids: list[int] = []
        self._start, self._read = 0, 0  # ids from which is decoded, and up to which the text is known
        self._raw = ""  # all that is decoded, white space kept
        self._given = 0  # characters of the answer that were returned
        self.is_stopped = False

    def take(self, token: int) -> str:
        """The piece that the answer has grown by."""
        self._ids.append(token)

        # only a few ids are decoded again: those before the new one decide whether a space stands between
        known = self._tokenizer.decode(self._ids[self._start : self._read])
        text = self._tokenizer.decode(self._ids[self._start :])
        if len(text) > len(known) and not text.endswith(UNFINISHED):
            self._raw += text[len(known) :]
            self._start, self._read = self._read, len(self._ids)
        return self._piece(is_end=False)

    def end(self) -> str:
        """The last piece."""
        if not self.is_stopped:
            known = self._tokenizer.decode(self._ids[self._start : self._read])
            self._raw += self._tokenizer.decode(self._ids[self._start :])[len(known) :]
        return self._piece(is_end=True)

    def _piece(self, is_end: bool) -> str:
        found = [self._raw.find(stop) for stop in self._stops if stop in self._raw]
        if found:
            self._raw = self._raw[: min(found)]
            self.is_stopped = True

        text = self._raw
        if not is_end and not self.is_stopped:
            text = text[: len(text) - self._begun()]
        ready = text.strip()
        piece = ready[self._given :]
        self._given = max(self._given, len(ready))
        return piece

    def _begun(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        return max(
            (n for stop in self._stops for n in range(len(stop)) if self._raw.endswith(stop[:n])), default=0
        )
