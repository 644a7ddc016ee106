"""Watches what a model computes: rows of its LLM's calls and tiles of its ViT's."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch


@contextmanager
def watched(model):
    """Yields `rows`, the places that each call of the LLM computed, and `tiles`, those of each of the ViT."""
    seen = SimpleNamespace(rows=[], tiles=[])

    def llm(module, args, kwargs):
        seen.rows.append(kwargs["inputs_embeds"].shape[1])

    def vit(module, args, kwargs):
        seen.tiles.append(len(args[0]))

    hooks = [
        model.model.language_model.register_forward_pre_hook(llm, with_kwargs=True),
        model.model.vision_model.register_forward_pre_hook(vit, with_kwargs=True),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def interrupted(module, call: int, error=KeyboardInterrupt):
    """Lets `error` break out of the `call`-th call of a module, and expects it."""
    calls = iter(range(call + 1))

    def stop(*_):
        if next(calls, None) == call:
            raise error

    hook = module.register_forward_hook(stop)
    try:
        with pytest.raises(error):
            yield
    finally:
        hook.remove()


def record_calls(model, monkeypatch, answer: list[int] | None = None) -> list[dict]:
    """Records what reaches `generate`. `answer`: ids to return in the place of what it would generate."""
    recorded, generate = [], model.generate

    def recording(**kwargs):
        recorded.append(kwargs)
        if answer is None:
            return generate(**kwargs)
        return torch.cat([kwargs["input_ids"], torch.tensor([answer])], dim=1)

    monkeypatch.setattr(model, "generate", recording)
    return recorded
