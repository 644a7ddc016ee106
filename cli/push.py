"""`pvc push`: publishes a checkpoint on the Hub. The work is `hub/`'s."""

from typing import Annotated

from typer import Argument, Option

from pvc.cli.shared import examples, in_one_line, report_errors, show_status
from pvc.conversion.printable import printable

EXAMPLES = examples(
    "pvc push PVC-2B org/PVC-2B",
    "pvc push PVC-2B org/PVC-2B --private --revision v1",
)


def push(
    folder: Annotated[str, Argument(metavar="FOLDER", help="A checkpoint with its processor.")],
    repo_id: Annotated[str, Argument(metavar="REPO_ID", help="org/name; created where it does not exist.")],
    private: Annotated[bool, Option("--private", help="Create it as a private repository.")] = False,
    revision: Annotated[
        str | None, Option(help="Branch; created where it does not exist. Default: main.")
    ] = None,
    message: Annotated[str | None, Option(help="Commit message.")] = None,
) -> None:
    """Publish a checkpoint on the Hub, and print the commit's address.

    The folder is checked first, and only the files of the checkpoint are sent. After an interruption the
    same command sends what had not arrived. `hf auth login` or HF_TOKEN sets the token.
    """
    with report_errors(describe=in_one_line):  # the Hub's reason is not in the first line
        with show_status("Loading"):
            from pvc import hub
        print(printable(hub.push(folder, repo_id, private=private, revision=revision, message=message)))
