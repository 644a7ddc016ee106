"""`pvc data`: training data of raw videos. The work is `training/data_construction/`'s."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typer import Argument, Exit, Option, Typer

from pvc.cli.shared import CommandGroup, examples, log, report_errors
from pvc.conversion.printable import in_a_line, printable

EXAMPLE = "pvc data construct videos.jsonl data --url https://api.openai.com/v1 --model gpt-4o"
EXAMPLES = examples(
    f"{EXAMPLE} --dry-run --prompt-price 2.5 --reply-price 10",
    f"{EXAMPLE} --requests-per-minute 60",
    "pvc data construct videos.jsonl data --url http://localhost:8000/v1 --model Qwen2.5-VL --tasks temporal",
    "pvc data tasks",
    "pvc train check data/meta.json --model Dynamic-7B",
)
INCOMPLETE = 3  # exit code, as of `pvc evaluate`
MOST_SHOWN = 5  # errors of a kind

data = Typer(
    cls=CommandGroup,
    no_args_is_help=True,
    help="Make training data of raw videos.",
    epilog=examples(EXAMPLE),
)


@data.command(name="construct", epilog=EXAMPLES)
def construct_data(
    videos: Annotated[Path, Argument(metavar="VIDEOS", help="A list: .jsonl, .csv, or a path a line.")],
    out: Annotated[Path, Argument(metavar="OUT", help="Where frames, replies and data are written.")],
    url: Annotated[
        str | None, Option(metavar="URL", help="An OpenAI-compatible API, such as http://localhost:8000/v1.")
    ] = None,
    model: Annotated[str | None, Option(metavar="NAME", help="The model's name there.")] = None,
    key_variable: Annotated[
        str, Option(metavar="NAME", help="The environment variable that holds the API's key.")
    ] = "OPENAI_API_KEY",
    root: Annotated[
        Path | None, Option(metavar="DIR", help="Where paths count from. Default: the list's folder.")
    ] = None,
    limit: Annotated[int | None, Option(min=1, help="The first so many kept videos alone.")] = None,
    tasks: Annotated[
        list[str] | None, Option(metavar="TASK", help="A task or a family; repeatable. Default: all.")
    ] = None,
    tasks_per_video: Annotated[int, Option(min=1, help="Requests for a video.")] = 3,
    prompts: Annotated[
        Path | None, Option(metavar="YAML", help="In place of the project's own prompts.")
    ] = None,
    captions: Annotated[
        bool, Option("--captions/--no-captions", help="Put captions into the prompts.")
    ] = True,
    phrase_limit: Annotated[
        int, Option(min=0, help="Most videos that a noun phrase of captions keeps; 0: all.")
    ] = 100,
    max_frames: Annotated[int, Option(min=1, help="Of a video; one a second.")] = 128,
    long_frames: Annotated[int, Option(min=1, help="Of a share of videos, in place of --max-frames.")] = 256,
    long_share: Annotated[float, Option(min=0, max=1, help="That share.")] = 0.02,
    frame_size: Annotated[int, Option(min=16, help="Of a frame's longer side, in pixels.")] = 512,
    detail: Annotated[Literal["low", "high", "none"], Option(help="Of images; none: not sent.")] = "low",
    max_tokens: Annotated[int, Option(min=1, help="Of a reply.")] = 1024,
    temperature: Annotated[float | None, Option(min=0, help="Default: the API's.")] = None,
    body: Annotated[
        str | None,
        Option(metavar="JSON", help="Further fields of a request, null to leave one out: see the docs."),
    ] = None,
    requests_per_minute: Annotated[float | None, Option(min=0.01, help="Default: no limit.")] = None,
    concurrency: Annotated[int, Option(min=1, help="Requests at a time.")] = 8,
    timeout: Annotated[float, Option(min=0.1, metavar="SECONDS", help="Of one try.")] = 180.0,
    attempts: Annotated[int, Option(min=1, help="Tries of a request.")] = 6,
    workers: Annotated[int, Option(min=1, help="Videos decoded at a time.")] = 2,
    seed: Annotated[int, Option(min=0, help="Of everything that is drawn.")] = 0,
    dry_run: Annotated[
        bool, Option("--dry-run", help="Print requests, tokens and cost; ask and write nothing.")
    ] = False,
    prompt_price: Annotated[float, Option(min=0, help="Of a million tokens of prompts.")] = 0.0,
    reply_price: Annotated[float, Option(min=0, help="Of a million tokens of replies.")] = 0.0,
    image_tokens: Annotated[
        int | None, Option(min=1, help="Of an image, for --dry-run. Default: OpenAI's rule.")
    ] = None,
) -> None:
    """Make training data of raw videos: frames, questions and answers from an API, filtered.

    The same command goes on after any end, and asks nothing twice. Without --url the data are written from
    the replies that are there. Frames are sent to URL and nowhere else.

    Exit codes: 0 complete, 1 an error, 3 incomplete: requests without a reply, or videos that cannot be read.
    """
    with report_interrupts(), report_errors():
        from pvc.training.data_construction.frames import FrameOptions
        from pvc.training.data_construction.requests import RequestOptions

        if model is None:
            raise ValueError("--model is missing: replies are kept under the model's name")
        plan = make_plan(
            videos,
            root,
            prompts,
            tasks or [],
            phrase_limit=phrase_limit or None,
            limit=limit,
            seed=seed,
            tasks_per_video=tasks_per_video,
            frames=FrameOptions(max_frames, long_frames, long_share, frame_size, seed),
            requests=RequestOptions(
                max_tokens,
                temperature,
                None if detail == "none" else detail,
                captions,
                further=json_object("--body", body),
            ),
        )
        if dry_run:
            show_estimate(plan, out, model, image_tokens, (prompt_price, reply_price))
            return

        endpoint = make_endpoint(url, key_variable, timeout, attempts, requests_per_minute)
        report = run(plan, out, endpoint, model, concurrency, workers)
    raise Exit(show_report(report, out, (prompt_price, reply_price), was_asked=endpoint is not None))


@data.command(name="tasks")
def list_tasks(
    prompts: Annotated[
        Path | None, Option(metavar="YAML", help="In place of the project's own prompts.")
    ] = None,
) -> None:
    """List the tasks with their families and shares."""
    from pvc.reporting.markdown import markdown_table
    from pvc.training.data_construction.tasks import PROMPTS, read_prompts

    with report_errors():
        known = read_prompts(prompts or PROMPTS).tasks.values()
        whole = sum(task.share for task in known)
        rows = [
            (task.family, f"`{task.name}`", f"{task.share / whole:.1%}", task.pairs, task.format)
            for task in known
        ]
        header = ["family", "task", "share of pairs", "pairs a reply", "format"]
        print(printable(markdown_table(header, rows, align="llrrl")))


# ---- before


def json_object(option: str, text: str | None) -> dict[str, Any]:
    """The JSON object that an option gives; none is an empty one."""
    try:
        values = json.loads(text or "{}")
    except ValueError as error:
        raise ValueError(f"{option} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{option} is {text!r}: expected an object")
    return values


def make_plan(
    videos: Path,
    root: Path | None,
    prompts: Path | None,
    tasks: list[str],
    *,
    phrase_limit: int | None,
    limit: int | None,
    seed: int,
    tasks_per_video: int,
    **options: Any,
) -> Any:
    """The plan of a list of videos; fewer tasks than asked for a video are all of them."""
    from pvc.training.data_construction.construct import Plan
    from pvc.training.data_construction.tasks import PROMPTS, read_prompts
    from pvc.training.data_construction.videos import read_list, select

    texts = read_prompts(prompts or PROMPTS)
    chosen = texts.only(tasks)
    selection = select(read_list(videos, root), phrase_limit=phrase_limit, seed=seed)
    if limit is not None:
        selection = selection._replace(videos=selection.videos[:limit])
    return Plan(selection, chosen, texts, min(tasks_per_video, len(chosen)), seed=seed, **options)


def make_endpoint(
    url: str | None, key_variable: str, timeout: float, attempts: int, per_minute: float | None
) -> Any:
    """The endpoint at a URL; None where there is no URL."""
    from pvc.evaluation.chat_endpoint import ChatEndpoint
    from pvc.training.data_construction.asking import RateLimit

    if url is None:
        return None
    if not os.environ.get(key_variable):
        log(f"{key_variable} is not set: no key is sent")
    return ChatEndpoint(
        url,
        key_variable=key_variable,
        timeout_s=timeout,
        attempts=attempts,
        before_each=RateLimit(per_minute).wait,
    )


def show_estimate(
    plan: Any, out: Path, model: str, image_tokens: int | None, prices: tuple[float, float]
) -> None:
    """Prints what a run would ask and cost."""
    from pvc.reporting.markdown import markdown_table
    from pvc.training.data_construction.estimate import estimate

    with bar() as progress:
        found = estimate(plan, out, model, image_tokens=image_tokens, progress=progress)

    rows = [(f"videos {what}", number) for what, number in found.videos.items()]
    rows += [
        ("replies that are there", found.kept_replies),
        ("requests", sum(found.requests.values())),
        ("images in them", found.images),
        ("tokens of prompts, about", found.prompt_tokens),
        ("tokens of replies, about", found.reply_tokens),
    ]
    lines: list[tuple[str, str]] = [(what, f"{number:,}") for what, number in rows]
    if any(prices):
        lines.append(("cost, about", f"{found.cost(*prices):,.2f}"))
    lines += [(f"requests `{task}`", f"{number:,}") for task, number in found.requests.most_common()]
    print(printable(markdown_table(["what", "number"], lines, align="lr")))
    show_some("cannot be read", [f"{path}: {error}" for path, error in found.unreadable])


# ---- a run


@contextmanager
def report_interrupts() -> Iterator[None]:
    """Turns Ctrl-C into one line and an exit code."""
    try:
        yield
    except KeyboardInterrupt:
        log("stopped: all replies so far are kept, and the same command goes on")
        raise Exit(INCOMPLETE) from None


def run(plan: Any, out: Path, endpoint: Any, model: str, concurrency: int, workers: int) -> Any:
    """Runs a plan with progress on stderr."""
    from pvc.training.data_construction.construct import construct

    with bar() as progress:
        return construct(
            plan, out, endpoint, model, concurrency=concurrency, workers=workers, progress=progress
        )


@contextmanager
def bar() -> Iterator[Any]:
    """Bars on stderr, one for each step; yields the callback `(what, done, total)`."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True)) as shown:
        steps: dict[str, Any] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in steps:
                steps[what] = shown.add_task(what, total=total)
            shown.update(steps[what], completed=done)

        yield advance


def show_report(report: Any, out: Path, prices: tuple[float, float], was_asked: bool) -> int:
    """Prints what came of a run, in numbers; returns the exit code."""
    from pvc.reporting.markdown import markdown_table

    header = ["of", "what", "number"]
    print(printable(markdown_table(header, report_rows(report, prices), align="llr")))

    show_some("cannot be read", [f"{path}: {error}" for path, error in report.unreadable])
    show_some("without a reply", [f"{video}, {task}: {error}" for video, task, error in report.failures])
    if report.gave_up:
        log("nothing more was asked after so many errors: are URL, model and key right?", "red")
    if not report.is_complete:
        again = "run the same command again" if was_asked else "give the run's own options, and --url"
        log(f"{report.replies['missing']:,} replies are missing: {again}", "yellow")

    has_data = any(report.pairs.values())
    following = f"; next: pvc train check {out / 'meta.json'}" if has_data else ", without data"
    log(f"written: {out}{following}")
    return 0 if report.is_complete and not report.unreadable else INCOMPLETE


def report_rows(report: Any, prices: tuple[float, float]) -> list[tuple[str, str, str]]:
    """The numbers of a report that are not 0, and what its tokens cost."""
    groups = {
        "videos": report.videos,
        "replies": report.replies,
        "pairs dropped": report.dropped,
        "pairs kept": report.pairs,
        "tokens": report.usage,
        "failed tries": report.failed_tries,
    }
    rows = [
        (group, what, f"{number:,}")
        for group, counts in groups.items()
        for what, number in counts.items()
        if number
    ]

    if any(prices):
        tokens = (report.usage["prompt_tokens"], report.usage["completion_tokens"])
        cost = sum(number * price for number, price in zip(tokens, prices)) / 1e6
        rows.append(("tokens", "cost", f"{cost:,.2f}"))
    return rows


def show_some(what: str, lines: list[str]) -> None:
    """Prints the first lines of a list of errors on stderr."""
    for line in lines[:MOST_SHOWN]:
        log(f"{what}: {in_a_line(line)}", style="red")
    if len(lines) > MOST_SHOWN:
        log(f"{what}: {len(lines) - MOST_SHOWN:,} more, see report.json", style="red")
