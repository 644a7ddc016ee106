"""Fast decoding: a cache of fixed size and compiled steps for `generate(…, fast_decode=True)`.

transformers decodes with `torch.compile` (CUDA graphs on a GPU) where the LLM's cache is a `StaticCache`, and
prefills without. It sizes that cache to each call, so that each new length is compiled anew; here lengths are
rounded up, and one compiled step serves all prompts and answers of about a size. Generation itself is left
to transformers.
"""

import torch
from transformers import CompileConfig
from transformers.cache_utils import Cache, DynamicCache, StaticCache, StaticLayer

LENGTH_STEP = 1024  # positions; attention reads them all, 1 % of what a step of the 8B reads of its weights
DEFAULT_NEW_TOKENS = 20  # transformers' own
ASSISTED = ("assistant_model", "prompt_lookup_num_tokens", "assistant_early_exit")
NOT_WITH_A_CACHE = ("cache_implementation", "past_key_values", *ASSISTED)


def generate_setting(model, options: dict, name: str):
    """What `model.generate(**options)` goes by: the call's, its configuration's or the model's own."""
    sources = (options.get("generation_config"), model.generation_config)
    values = [options.get(name), *(getattr(source, name, None) for source in sources)]
    return next((value for value in values if value is not None), None)


def check_settings(model, options: dict, purpose: str, one: tuple[str, ...]):
    """Raises a ValueError where `purpose` does not go with options of `generate`.

    Those are numbers of which there must be `one`, other caches, and assisted generation (with a filled
    cache, transformers' goes wrong).
    """
    for name in (*one, *NOT_WITH_A_CACHE):
        value = generate_setting(model, options, name)
        if value is not None and not (name in one and value == 1):
            raise ValueError(f"{purpose} does not go with {name} ({value!r}): leave one of them out")
    if generate_setting(model, options, "use_cache") is False:
        raise ValueError(f"{purpose} does not go with use_cache=False: leave one of them out")


def fast_decode_options(
    model, prompt: torch.Tensor | None, options: dict, prefix: Cache | None = None
) -> dict:
    """`options` of `generate` with a static cache for a prompt and its answer, and compiled steps.

    Args:
        prompt: its ids `(B, L)` or embeddings `(B, L, H)`; None: BOS alone.
        prefix: keys and values of the prompt's first positions that are known already; they are copied.

    Raises:
        ValueError: where the options ask for beams, assisted generation or another cache.
    """
    check_settings(model, options, "fast_decode", one=("num_beams",))

    # the length that the answer may reach, rounded up
    prompt_length = 1 if prompt is None else prompt.shape[1]
    new_tokens = generate_setting(model, options, "max_new_tokens")
    if new_tokens is None:
        max_length = generate_setting(model, options, "max_length") or 0
        new_tokens = max(max_length - prompt_length, DEFAULT_NEW_TOKENS)
    length = -(-(prompt_length + new_tokens) // LENGTH_STEP) * LENGTH_STEP

    cache = StaticCache(config=model.config.llm_config, max_cache_len=length)
    if prefix is not None:
        # none that slides: `as_dynamic` wants all positions
        cache.layers = [StaticLayer(length) for _ in cache.layers]
        for i, layer in enumerate(prefix.layers):
            cache.update(layer.keys, layer.values, i)

    compile_config = generate_setting(model, options, "compile_config") or _compile_config(model.device)
    return options | {"past_key_values": cache, "compile_config": compile_config}


def _compile_config(device: torch.device) -> CompileConfig:
    """CUDA graphs on a GPU; elsewhere compiled code alone, which transformers makes there only if told to."""
    if device.type == "cuda":
        return CompileConfig()
    config = CompileConfig(mode="default")
    config._compile_all_devices = True
    return config


def as_dynamic(cache: StaticCache) -> DynamicCache:
    """A copy of what a static cache holds so far, that can grow."""
    dynamic = DynamicCache()
    for i, layer in enumerate(cache.layers):
        length = int(layer.get_seq_length())
        if length:
            dynamic.update(layer.keys[:, :, :length], layer.values[:, :, :length], i)
    return dynamic
