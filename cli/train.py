"""`pvc train`: train a model, or check training data. The work is `training/run.py`'s."""

from typing import Annotated, Any

from typer import Argument, Exit, Option, Typer

from pvc import CHECKPOINT
from pvc.cli.shared import (
    STARTUP_ERRORS,
    CommandGroup,
    examples,
    find_model,
    log,
    report_errors,
    show_status,
)
from pvc.conversion.printable import printable

SETTINGS = Option("--set", metavar="NAME=VALUE", help="Change a value of the recipe; repeatable.")
TRUST = Option("--trust-remote-code", help="Run a Hub model's code unasked.")
RUN_EXAMPLE = "pvc train tune-lora --model PVC-2B --data meta.json --output run"
CHECK_EXAMPLE = "pvc train check meta.json --model PVC-2B --recipe tune-lora --decode"


class RunByDefault(CommandGroup):
    """`pvc train RECIPE …` is `pvc train run RECIPE …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        names_command = not args or args[0] in self.commands or args[0] == "--help"
        return super().parse_args(ctx, args if names_command else ["run", *args])


training = Typer(
    cls=RunByDefault,
    no_args_is_help=True,
    help="Train a model, check training data, or show recipes.",
    epilog=examples(RUN_EXAMPLE, CHECK_EXAMPLE),
)


@training.command(
    name="run",
    epilog=examples(RUN_EXAMPLE, f"{RUN_EXAMPLE} --set max_steps=200 --resume"),
)
def run_training(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="YAML file, or a name such as tune-lora.")],
    model: Annotated[str, Option(metavar="MODEL", help="Folder or Hub id to start from.")],
    data: Annotated[str, Option(metavar="DATA", help="Meta JSON of the data, as InternVL has it.")],
    output: Annotated[str, Option(metavar="FOLDER", help="For checkpoints and the trained model.")],
    settings: Annotated[list[str], SETTINGS] = (),  # type: ignore[assignment]
    resume: Annotated[bool, Option("--resume", help="Continue after the last checkpoint, if any.")] = False,
    trust: Annotated[bool, TRUST] = False,
) -> None:
    """Train MODEL by RECIPE.

    On several GPUs: torchrun --nproc-per-node N -m pvc.cli train …
    """
    with report_errors(STARTUP_ERRORS):
        from pvc.training.recipe import Recipe, parse_changes, read_recipe
        from pvc.training.run import train

        changes = parse_changes(settings)
        planned = Recipe.from_values(read_recipe(recipe, changes), asked=changes)
        with show_status("Loading") as status:
            folder = find_model(model, trust, status)
        trainer = train(planned, model=folder, data=data, output=output, resume=resume, say=log)
    trainer.accelerator.end_training()


@training.command(name="check", epilog=examples(CHECK_EXAMPLE))
def check_data(
    data: Annotated[str, Argument(metavar="DATA", help="Meta JSON of the data, as InternVL has it.")],
    model: Annotated[str, Option(help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    recipe: Annotated[str | None, Option(metavar="RECIPE", help="Recipe whose settings are used.")] = None,
    settings: Annotated[list[str], SETTINGS] = (),  # type: ignore[assignment]
    decode: Annotated[bool, Option("--decode", help="Decode images and videos too.")] = False,
    workers: Annotated[int, Option(min=0, help="Processes that read.")] = 0,
    trust: Annotated[bool, TRUST] = False,
) -> None:
    """Read DATA once, as training would, and list broken samples (exit code 1 where there are any)."""
    with report_errors(STARTUP_ERRORS):
        from pvc.training.data.check import check
        from pvc.training.data.loader import with_kinds_there_are
        from pvc.training.recipe import Recipe, parse_changes, read_recipe
        from pvc.training.run import load_processor

        changes = parse_changes(settings)
        planned = Recipe.from_values(read_recipe(recipe, changes) if recipe else changes, asked=changes)
        with show_status("Loading") as status:
            processor = load_processor(find_model(model or str(CHECKPOINT), trust, status))

        report = with_kinds_there_are(
            lambda options: check(data, processor, options, decode=decode, num_workers=workers),
            planned.data,
            planned.asked,
        )

    print(printable(str(report)))
    if report.broken:
        raise Exit(1)


@training.command(name="recipes")
def list_all_recipes() -> None:
    """List the packaged recipes: name, purpose, and what each needs."""
    from pvc.training.recipe import list_recipes

    found = list_recipes()
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        print(f"{recipe.name:<{width}}  {recipe.purpose}\n{'':<{width}}  needs: {recipe.needs}")


@training.command(name="show")
def show_one_recipe(
    recipe: Annotated[str, Argument(metavar="RECIPE", help="YAML file, or a name such as tune-lora.")],
    settings: Annotated[list[str], SETTINGS] = (),  # type: ignore[assignment]
) -> None:
    """Print RECIPE as YAML, with what it extends, the defaults and all changes filled in."""
    with report_errors(STARTUP_ERRORS):
        from pvc.training.recipe import parse_changes, show_recipe

        text = show_recipe(recipe, parse_changes(settings))
    print(printable(text), end="")
