"""Size, speed and agreement of PVC-Tiny with its LLM quantised, as a Markdown table.

    python -m pvc.tiny.quantized --samples 10           needs bitsandbytes and torchao

Agreement is the share of held-out samples that get the same greedy answer as in bfloat16. All kinds answer
the same questions in turn, in one process, so that their times compare.
"""

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from pvc import CHECKPOINT
from pvc.loading import quantization_config
from pvc.modeling_pvc import PVCForConditionalGeneration
from pvc.processing_pvc import PVCProcessor
from pvc.reporting.markdown import markdown_table
from pvc.tiny.synthetic.dataset import SyntheticDataset, SyntheticSample
from pvc.tiny.synthetic.scenes import draw
from pvc.tiny.synthetic.tasks import TASKS
from pvc.training.run import load_processor

WHOLE = "bfloat16"
KINDS = (WHOLE, "int8", "nf4", "int8-weight-only")
TASKS_ASKED = ("word", "colour", "count", "exists", "place", "motion")
NEW_TOKENS = 16


def load(kind: str) -> PreTrainedModel:
    """PVC-Tiny with its LLM as `kind` says."""
    options = {} if kind == WHOLE else {"quantization_config": quantization_config(kind)}
    return PVCForConditionalGeneration.from_pretrained(CHECKPOINT, dtype=torch.bfloat16, **options).eval()


def saved_mb(model: PreTrainedModel) -> float:
    """Size of the weights on disk, in 10^6 bytes. To be asked before the model is first used."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6


def inputs_of(sample: SyntheticSample, processor: PVCProcessor) -> Any:
    """What `generate` takes for a sample's first question."""
    drawn = [draw(scene) for scene in sample.scenes]
    is_video = TASKS[sample.task].media == "video"
    media = (
        [{"type": "video", "video": drawn}] if is_video else [{"type": "image", "image": x} for x in drawn]
    )
    messages = [{"role": "user", "content": [*media, {"type": "text", "text": sample.question}]}]
    return processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )


@torch.no_grad()
def answer(model: PreTrainedModel, inputs: Any) -> tuple[list[int], float]:
    """The ids of the greedy answer, and the seconds it took."""
    start = time.perf_counter()
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False)
    return ids[0, inputs["input_ids"].shape[1] :].tolist(), time.perf_counter() - start


def compare(samples: int) -> str:
    """The table over `samples` of each task."""
    models = {kind: load(kind) for kind in KINDS}
    sizes = {kind: saved_mb(model) for kind, model in models.items()}

    processor = load_processor(str(CHECKPOINT))
    dataset = SyntheticDataset(samples * len(TASKS_ASKED), held_out=True, tasks=TASKS_ASKED)
    equal = dict.fromkeys(KINDS, 0)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for sample in map(dataset.sample, range(len(dataset))):
        inputs = inputs_of(sample, processor)
        found = {kind: answer(model, inputs) for kind, model in models.items()}
        for kind, (ids, taken) in found.items():
            equal[kind] += ids == found[WHOLE][0]
            seconds[kind].append(taken)

    base = statistics.median(seconds[WHOLE])
    rows = [
        [
            kind,
            f"{sizes[kind]:.1f}",
            f"{statistics.median(seconds[kind]) / base:.2f}",
            f"{equal[kind] / len(dataset):.0%}",
        ]
        for kind in KINDS
    ]
    return markdown_table(
        ["LLM", "weights, MB", "time of an answer, ratio", "same answer"], rows, align="lrrr"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Size, speed and agreement of PVC-Tiny, quantised.")
    parser.add_argument("--samples", type=int, default=10, help="of each task")
    arguments = parser.parse_args()

    disable_progress_bar()
    print(f"{platform.processor() or platform.machine()}, torch {torch.__version__}, bfloat16\n")
    print(compare(arguments.samples))


if __name__ == "__main__":
    main()
