"""The command `pvc`: one module a command, put together here.

    pvc chat "What is this?" --image image.png        one question
    pvc chat org/model --video clip.mp4               a dialogue
    pvc info org/model --frames 64                    sizes, visual tokens, memory
    pvc convert OpenGVLab/InternVL2-2B PVC-2B         make a PVC of an InternVL
    pvc quantize PVC-2B PVC-2B-int8                   write it with 8 bits a weight
    pvc push PVC-2B org/PVC-2B                        publish it on the Hub
    pvc train check meta.json                         check training data
    pvc train tune-lora --model M --data meta.json --output run
    pvc data construct videos.jsonl data --url U --model M
                                                      make training data of videos
    pvc evaluate mvbench --data data --out run        run a benchmark
    pvc compare run-a run-b                           test two runs against each other
    pvc serve org/model                               answer OpenAI's API
    pvc web org/model                                 ask in the browser
    pvc bench count --preset 8B                       count FLOPs and bytes

Answers and tables go to stdout, all other messages to stderr. torch and transformers are imported
where they are used, so that `--help` and `--version` are fast.
"""

import sys
from importlib.metadata import version
from typing import Annotated

from typer import Exit, Option, Typer

from pvc.cli import bench, chat, convert, data, evaluate, info, push, quantize, serve, train, web
from pvc.cli.shared import CommandGroup, examples

app = Typer(
    cls=CommandGroup,
    epilog=examples("pvc chat", 'pvc chat "What is this?" --image image.png', "pvc COMMAND --help"),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback(invoke_without_command=True)
def main(show_version: Annotated[bool, Option("--version", help="Print the version.")] = False) -> None:
    """PVC: a vision-language model for images and videos."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # an answer may hold any character

    if show_version:
        print(f"pvc {version('pvc')}")
        raise Exit


app.command(epilog=chat.EXAMPLES)(chat.chat)
app.command(epilog=info.EXAMPLES)(info.info)
app.command(epilog=convert.EXAMPLES)(convert.convert)
app.command(epilog=push.EXAMPLES)(push.push)
app.command(epilog=quantize.EXAMPLES)(quantize.quantize)
app.add_typer(train.training, name="train")
app.add_typer(data.data, name="data")
app.command(epilog=evaluate.EXAMPLES)(evaluate.evaluate)
app.command(epilog=evaluate.COMPARE_EXAMPLES)(evaluate.compare)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command(epilog=web.EXAMPLES)(web.web)
app.command(epilog=bench.EXAMPLES)(bench.bench)
