"""vLLM without a server: prompts and answers have the ids of `generate`, however prompts are batched."""

import pytest
from vllm import LLM, SamplingParams

ENGINE = {
    "trust_remote_code": True,
    "dtype": "float32",
    "enforce_eager": True,
    "max_model_len": 2048,
    "limit_mm_per_prompt": {"image": 4, "video": 2},
}


def make_engine(model: dict, **settings) -> LLM:
    frames = {"video": {"num_frames": model["frames"]}}
    return LLM(model["path"], media_io_kwargs=frames, **ENGINE | settings)


def ask(engine: LLM, model: dict, cases: list[dict]) -> list:
    greedy = SamplingParams(temperature=0, max_tokens=model["new_tokens"])
    return engine.chat([case["messages"] for case in cases], greedy, use_tqdm=False)


def check(outputs: list, model: dict, names: list[str]) -> None:
    for name, output in zip(names, outputs, strict=True):
        case = model["cases"][name]
        assert list(output.prompt_token_ids) == case["prompt_ids"], name
        assert list(output.outputs[0].token_ids) == case["new_ids"], name


@pytest.fixture(scope="module")
def tiny(reference) -> dict:
    return reference["PVC-Tiny"]


@pytest.fixture(scope="module")
def engine(tiny):
    engine = make_engine(tiny)
    yield engine
    engine.llm_engine.engine_core.shutdown()


def test_prompts_one_by_one_have_the_ids_of_generate(engine, tiny):
    for name, case in tiny["cases"].items():
        check(ask(engine, tiny, [case]), tiny, [name])


def test_a_batch_has_the_ids_of_generate_and_finds_its_prefixes_again(engine, tiny):
    names = list(tiny["cases"]) * 4
    engine.reset_prefix_cache()
    for is_again in (False, True):
        outputs = ask(engine, tiny, [tiny["cases"][name] for name in names])
        check(outputs, tiny, names)
        cached = sum(output.num_cached_tokens or 0 for output in outputs)
        prompts = sum(len(output.prompt_token_ids) for output in outputs)
        print(f"{cached} of {prompts} prompt tokens from the prefix cache")
        assert not is_again or cached > prompts / 3


def test_fewer_tiles_can_be_asked_for(engine, tiny):
    case = tiny["cases"]["an image"]
    greedy = SamplingParams(temperature=0, max_tokens=1)
    context = max(set(case["prompt_ids"]), key=case["prompt_ids"].count)
    (output,) = engine.chat(case["messages"], greedy, use_tqdm=False, mm_processor_kwargs={"max_tiles": 1})
    assert case["prompt_ids"].count(context) == 3 * list(output.prompt_token_ids).count(context)


CHUNKS = {"max_num_batched_tokens": 64, "max_num_seqs": 4, "enable_prefix_caching": False}


@pytest.mark.parametrize("name", ["PVC-Tiny", "Qwen2", "Qwen3", "Phi3", "Dynamic-VLM"])
def test_prompts_cut_into_chunks_have_the_ids_of_generate(name, reference):
    """Chunks of 64 tokens cut through images. The other models have other LLMs and tokenizers.

    With Phi3's tokenizer a space before an image is lost.
    """
    model = reference[name]
    names = ["an image", "text"] if name == "Phi3" else list(model["cases"])
    check_new_engine(model, names, **CHUNKS)


def test_two_processes_of_tensor_parallelism_have_the_ids_of_generate(tiny, monkeypatch):
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0|1")
    check_new_engine(tiny, list(tiny["cases"]), tensor_parallel_size=2)


def check_new_engine(model: dict, names: list[str], **settings) -> None:
    engine = make_engine(model, **settings)
    try:
        check(ask(engine, model, [model["cases"][case] for case in names]), model, names)
    finally:
        engine.llm_engine.engine_core.shutdown()
