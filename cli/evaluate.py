"""`pvc evaluate` and `pvc compare`: benchmarks. The work is `evaluation/`'s."""

import os
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Argument, Exit, Option

from pvc import CHECKPOINT
from pvc.cli.shared import (
    DTYPES,
    FRAME_TOKENS,
    IMAGE_REPEATS,
    QUANTIZATIONS,
    VIDEO_TOKENS,
    examples,
    find_model,
    in_one_line,
    log,
    report_errors,
    show_status,
)
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc evaluate --list",
    "pvc evaluate mvbench videomme --model org/model --data data --out run",
    "pvc evaluate chartqa --data data --dry-run",
    "pvc evaluate chartqa --data data --out run --rescore",
    "torchrun --nproc-per-node 8 -m pvc.cli evaluate mvbench --model org/model --data data --out run",
)
COMPARE_EXAMPLES = examples("pvc compare run-a run-b")
BAD_USAGE, INCOMPLETE = 2, 3  # exit codes; see `evaluation/run.py`


def evaluate(
    tasks: Annotated[list[str] | None, Argument(metavar="TASK…", show_default=False)] = None,
    model: Annotated[str, Option(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    data: Annotated[Path, Option(metavar="DIR", help="All benchmarks' folder, or the task's own.")] = Path(
        "data"
    ),
    out: Annotated[Path, Option(metavar="RUN", help="Where answers and results are written.")] = Path("run"),
    protocol: Annotated[str | None, Option(help="Default: the task's first; see --list.")] = None,
    limit: Annotated[int | None, Option(min=1, help="The first so many records alone.")] = None,
    frames: Annotated[int | None, Option(min=1, help="Of a video, in place of the protocol's.")] = None,
    tiles: Annotated[int | None, Option(min=1, help="Of an image, in place of the protocol's.")] = None,
    image_repeats: IMAGE_REPEATS = None,
    max_video_tokens: VIDEO_TOKENS = None,
    frame_tokens: FRAME_TOKENS = None,
    batch: Annotated[int, Option(min=1, help="Questions asked at once.")] = 1,
    workers: Annotated[int, Option(min=0, help="Processes that read media ahead.")] = 2,
    skip_missing: Annotated[
        bool, Option("--skip-missing", help="Leave out records without their media; marked in the result.")
    ] = False,
    fresh: Annotated[bool, Option("--fresh", help="Delete answers that are there, and start anew.")] = False,
    show_first: Annotated[
        bool, Option("--dry-run", help="Show prompts, tiles and frames; loads no weights.")
    ] = False,
    score_again: Annotated[
        bool, Option("--rescore", help="Score the answers of RUN again, without a model.")
    ] = False,
    judge_url: Annotated[
        str | None, Option(metavar="URL", help="An OpenAI-compatible API; its key: OPENAI_API_KEY.")
    ] = None,
    judge_model: Annotated[str | None, Option(metavar="NAME", help="Of --judge-url.")] = None,
    list_tasks: Annotated[bool, Option("--list", help="List the tasks with their protocols.")] = False,
    engine: Annotated[
        Literal["chat", "vllm"], Option(help="Who answers; vllm: see docs/serving.md.")
    ] = "chat",
    vllm_options: Annotated[
        str | None, Option(metavar="JSON", help='Of vllm.LLM, such as {"tensor_parallel_size": 4}.')
    ] = None,
    device: Annotated[str | None, Option(help="cuda, cuda:1, mps or cpu. Default: the fastest.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: as saved.")] = "auto",
    quantize: Annotated[QUANTIZATIONS | None, Option(help="Load the LLM in 8 or 4 bits.")] = None,
    attn: Annotated[str | None, Option(help="sdpa, flash_attention_2, eager. Default: sdpa.")] = None,
    trust: Annotated[bool, Option("--trust-remote-code", help="Of a Hub id: do not ask.")] = False,
) -> None:
    """Run benchmarks: ask a model all questions, score the answers, and write results and files for servers.

    A run that was interrupted goes on with the same command. Nothing is downloaded but a model that is named
    by its Hub id.

    Exit codes: 0 complete, 1 some samples failed, 2 wrong usage or data missing, 3 incomplete.
    """
    from pvc.evaluation.run import Options

    options = Options(
        *(protocol, limit, frames, tiles, workers, skip_missing, fresh),
        image_repeats=image_repeats,
        max_video_tokens=max_video_tokens,
        frame_tokens=frame_tokens,
    )
    with usage_errors():
        judge = make_judge(judge_url, judge_model, out)
        if list_tasks:
            print(printable(tasks_table()))
            raise Exit(0)
        if not tasks:
            raise ValueError("no TASK is given: --list shows them")
        if show_first:
            show_dry_run(tasks, model, data, options)
            raise Exit(0)
        if score_again:
            raise Exit(max(score_task(task, data, out, options, judge) for task in tasks))

        plans = make_plans(tasks, data, options)
        if fresh:
            delete_old(plans, out)
        with show_status("Loading") as status:
            folder = find_model(model or str(CHECKPOINT), trust, status)
            identity = identity_of(folder, model)
            if engine == "vllm":
                answerer = load_vllm(folder, identity, dtype, batch, vllm_options)
            else:
                answerer = load_engine(folder, identity, device, dtype, quantize, attn, batch)
    raise Exit(run_tasks(answerer, plans, out, options, judge))


@contextmanager
def usage_errors() -> Iterator[None]:
    """What goes wrong before the first question: one message, and exit code 2."""
    try:
        yield
    except Exit:  # a RuntimeError too
        raise
    except KeyboardInterrupt:
        log("stopped before the first question")
        raise Exit(INCOMPLETE) from None
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        log(f"error: {error}", style="red")
        raise Exit(BAD_USAGE) from None


def make_judge(url: str | None, model: str | None, out: Path) -> Any:
    """The judge behind a URL, which keeps its replies in the run's folder; None where there is no URL."""
    from pvc.evaluation.judge import Judge

    if url is None:
        return None
    if model is None:
        raise ValueError("--judge-url needs --judge-model, the name of the model there")
    return Judge(url, model, cache=out / "judge.jsonl")


def tasks_table() -> str:
    """All tasks with their protocols (the default first), metric and published values, as Markdown."""
    from pvc.evaluation.tasks import TASKS
    from pvc.reporting.markdown import markdown_table

    return markdown_table(
        ["task", "data", "protocols", "metric", "published"],
        [
            [f"`{task.name}`", task.about, ", ".join(task.protocols), metric_name(task), published(task)]
            for task in TASKS.values()
        ],
    )


def metric_name(task: Any) -> str:
    """The headline of a task's default protocol, or why there is none."""
    default = next(iter(task.protocols.values()))
    if not task.has_answers:
        return "a file for the server"
    return f"{default.metric.name}, by a judge" if default.needs_judge else default.metric.name


def published(task: Any) -> str:
    """The papers' values of the headline, then those of a judge."""
    default = next(iter(task.protocols.values()))
    judged = default.judge.paper if default.judge else {}
    values = [f"{model} {value:g}" for model, value in task.paper.items()]
    values += [f"{model} {x:g} ({name})" for name, of in judged.items() for model, x in of.items()]
    return ", ".join(values)


def make_plans(tasks: list[str], data: Path, options: Any) -> list[Any]:
    """What each task will ask. Raises where one cannot be run, before weights are loaded for any."""
    from pvc.evaluation.run import make_plan

    return [make_plan(task, data, options) for task in tasks]


def delete_old(plans: list[Any], out: Path) -> None:
    """Deletes this rank's old answers, before another rank that is faster could take them for new ones."""
    from pvc.evaluation.run import delete_answers

    for plan in plans:
        delete_answers(out / plan.task.name, this_rank())


def score_task(task: str, data: Path, out: Path, options: Any, judge: Any) -> int:
    """Scores the answers of a task again and prints the result; returns the exit code."""
    from pvc.evaluation.run import rescore

    return report(rescore(task, data, out=out, options=options, judge=judge), out)


def show_dry_run(tasks: list[str], model: str, data: Path, options: Any) -> None:
    """Prints the first questions of each task."""
    from pvc.cli.shared import read_config
    from pvc.evaluation.media import Tiling
    from pvc.evaluation.run import dry_run

    config = read_config(model or str(CHECKPOINT))
    is_stretched = config.get("model_type") == "dynamic_vlm"
    tiling = Tiling(config["vision_config"]["image_size"], is_stretched)
    for task in tasks:
        for line in dry_run(task, data, tiling, options):
            print(printable(line))


def identity_of(folder: str, name: str) -> dict[str, str]:
    """What tells this model from others: the name that the user gave ("": PVC-Tiny), and its weights."""
    from pvc.evaluation.engine import checkpoint_identity

    shown_name = os.path.basename(os.path.realpath(name)) if os.path.isdir(name) else name
    return checkpoint_identity(Path(folder), shown_name or "PVC-Tiny")


def load_engine(
    folder: str,
    identity: dict[str, str],
    device: str | None,
    dtype: str,
    quantize: str | None,
    attn: str | None,
    batch: int,
) -> Any:
    """The model of a folder on this rank's device."""
    from pvc.cli.chat import load_model
    from pvc.evaluation.engine import ChatEngine, device_of_rank

    model, processor = load_model(folder, device or device_of_rank(), dtype, quantize, attn)
    identity["dtype"] = quantize or str(model.dtype).removeprefix("torch.")
    return ChatEngine(model, processor.tokenizer, identity, batch)


def load_vllm(folder: str, identity: dict[str, str], dtype: str, batch: int, options: str | None) -> Any:
    """The model of a folder in vLLM, with its options as JSON."""
    import json

    from transformers import AutoConfig, AutoTokenizer

    from pvc.evaluation.vllm_engine import VLLMEngine

    settings = {"dtype": dtype} | json.loads(options or "{}")
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    identity |= {"engine": "vllm", "dtype": str(settings["dtype"])}
    return VLLMEngine(folder, config, tokenizer, identity, batch, **settings)


def this_rank() -> Any:
    """As torchrun says."""
    from pvc.evaluation.run import Rank

    return Rank(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))


def run_tasks(engine: Any, plans: list[Any], out: Path, options: Any, judge: Any) -> int:
    """Runs tasks one after another; returns the highest exit code. Ctrl-C ends them all."""
    codes = []
    try:
        for plan in plans:
            codes.append(run_task(engine, plan, out, options, judge))
    except KeyboardInterrupt:
        log(f"{plan.task.name}: stopped; the same command goes on.")
        codes.append(INCOMPLETE)
    return max(codes)


def run_task(engine: Any, plan: Any, out: Path, options: Any, judge: Any) -> int:
    """Runs a task and prints its result; returns the exit code."""
    from pvc.evaluation import run

    rank = this_rank()
    task = plan.task.name
    try:
        with answers_progress(task, is_shown=rank.number == 0) as progress:
            outcome = run.run_plan(
                engine, plan, out=out, options=options, rank=rank, judge=judge, progress=progress
            )
        return report(outcome, out)
    except ValueError as error:
        log(f"error: {error}", style="red")
        return BAD_USAGE
    except (OSError, RuntimeError) as error:
        log(f"error: {in_one_line(error)}{worker_advice(error)}", style="red")
    except Exception:  # a bug: exit code 1 would mean that the run is complete
        log(traceback.format_exc(), style="red")
    log(f"{task} is incomplete: all answers so far are kept; the same command goes on.")
    return INCOMPLETE


def worker_advice(error: Exception) -> str:
    """What helps where a process that reads media was killed: torch may say so at any line."""
    from pvc.evaluation.media import WORKER_ADVICE

    text = str(error)
    return f" ({WORKER_ADVICE})" if "DataLoader worker" in text and WORKER_ADVICE not in text else ""


@contextmanager
def answers_progress(task: str, is_shown: bool) -> Iterator[Any]:
    """A bar on stderr with rate and time left; yields the callback `(done, total)`."""
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), disable=not is_shown) as bar:
        shown = bar.add_task(task, total=None, rate="")

        def advance(done: int, total: int) -> None:
            speed = bar.tasks[shown].speed
            rate = "" if not speed else f"{speed:.2f}/s"
            bar.update(shown, completed=done, total=total, rate=rate)

        yield advance


def report(outcome: Any, out: Path) -> int:
    """Prints the result of a task and where its files lie; returns the exit code."""
    from pvc.evaluation.report import as_markdown, plot

    result = outcome.result
    if result is None:
        log("This rank is done; the last one to finish writes the result.")
        return outcome.exit_code

    folder = out / result.task.name
    print(printable(as_markdown(result)))
    if result.unanswered:
        log(f"{result.unanswered} records are unanswered: run the command again to go on.", style="yellow")
        return outcome.exit_code

    try:
        plot(result, folder / "plot.svg")
    except ImportError as error:
        log(f"no plot: {error}")
    log(f"written: {folder}")
    if result.errors:
        log(f"{len(result.errors)} samples failed and count as wrong; run again to retry them.", style="red")
    return outcome.exit_code


def compare(
    a: Annotated[Path, Argument(metavar="RUN_A", help="Folder of a run.", show_default=False)],
    b: Annotated[Path, Argument(metavar="RUN_B", help="Folder of another.", show_default=False)],
) -> None:
    """Compare two runs by a paired test on the records that both have, task by task."""
    with report_errors():
        from pvc.evaluation import report as reports

        print(printable(reports.comparison_table(reports.compare(a, b))))
