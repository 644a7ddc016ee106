"""The released ByteVideoLLM -> Dynamic-VLM: names of parameters.

Its parts have the names of the classes they were made of: transformers' Qwen2 under `llm.`, CLIP's ViT under
`visual_encoder.`, and the projector.
"""

RELEASED_PREFIXES = {
    "llm.model.": "model.language_model.",
    "llm.lm_head.": "lm_head.",
    "visual_encoder.vision_model.": "model.vision_model.",
    "llm_proj.0.": "model.projector.0.",
    "llm_proj.2.": "model.projector.2.",
}


def released_name(name: str) -> str | None:
    """Our name of a parameter of the released ByteVideoLLM; None where it has none of that name."""
    for prefix, ours in RELEASED_PREFIXES.items():
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    return None
