"""What a serving engine does with a prompt and its media, written plainly: vLLM's Transformers backend.

It renders the chat template with the tokenizer, tokenises the text, looks for the ids of each placeholder or,
where one is not found, for its text, and puts in what the processor says stands for it.
"""

from typing import Any

MEDIA = ("image", "video")


def engine_prompt(processor, messages: list[dict]) -> tuple[str, list[int]]:
    """The text of messages and its ids, without BOS beyond the template's."""
    tokenizer = processor.tokenizer
    text = tokenizer.apply_chat_template(
        messages, chat_template=processor.chat_template, tokenize=False, add_generation_prompt=True
    )
    return text, tokenizer(text, add_special_tokens=False).input_ids


def engine_inputs(processor, media: dict[str, list], **options) -> dict[str, Any]:
    """What the processor makes of media ("image", "video") beside a text of placeholders alone."""
    text = "".join(getattr(processor, f"{kind}_token") * len(media.get(kind, [])) for kind in MEDIA)
    given = {f"{kind}s": media[kind] for kind in MEDIA if media.get(kind)}
    return processor(
        text=text,
        **given,
        return_text_replacement_offsets=True,
        truncation=False,
        return_tensors="pt",
        **options,
    )


def engine_ids(processor, messages: list[dict], media: dict[str, list]) -> list[int]:
    """Ids of a prompt with its media; raises a LookupError where a replacement is not found in them."""
    tokenizer = processor.tokenizer
    _, ids = engine_prompt(processor, messages)
    (offsets,) = engine_inputs(processor, media)["text_replacement_offsets"]
    replacements = {
        kind: [_encode(tokenizer, x["replacement"]) for x in offsets if x["type"] == kind] for kind in MEDIA
    }
    targets = {kind: _encode(tokenizer, getattr(processor, f"{kind}_token")) for kind in MEDIA}

    replaced = _replaced(ids, targets, replacements)
    if replaced is None:
        text = tokenizer.decode(ids)
        texts = {kind: tokenizer.decode(target) for kind, target in targets.items()}
        new = {kind: [tokenizer.decode(x) for x in found] for kind, found in replacements.items()}
        replaced_text = _replaced(text, texts, new)
        if replaced_text is None:
            raise LookupError(f"no placeholder for each medium in {text!r}")
        replaced = _encode(tokenizer, replaced_text)

    _check_found(replaced, replacements)
    return replaced


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def _replaced(whole, targets: dict, replacements: dict):
    """`whole` (a text or ids) with the n-th target of a kind replaced by the n-th replacement; or None."""
    left = {kind: list(found) for kind, found in replacements.items()}
    done, position = whole[:0], 0
    while any(left.values()):
        found = [(_find(whole, targets[kind], position), kind) for kind in MEDIA if left[kind]]
        found = [(start, kind) for start, kind in found if start >= 0]
        if not found:
            return None
        start, kind = min(found)
        done += whole[position:start] + left[kind].pop(0)
        position = start + len(targets[kind])
    return done + whole[position:]


def _find(whole, part, start: int) -> int:
    steps = range(start, len(whole) - len(part) + 1)
    return next((i for i in steps if whole[i : i + len(part)] == part), -1)


def _check_found(ids: list[int], replacements: dict) -> None:
    for kind, found in replacements.items():
        position = 0
        for number, replacement in enumerate(found):
            start = _find(ids, replacement, position)
            if start < 0:
                raise LookupError(f"{kind} {number} is not in the ids of the prompt as {replacement}")
            position = start + len(replacement)
