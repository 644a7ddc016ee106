"""`pvc web`: a web page to ask a model about images and videos. The work is `serving/web/`'s."""

import os
import signal
import sys
from typing import Annotated

from typer import Argument, Option

from pvc import ABOUT_CHECKPOINT, CHECKPOINT
from pvc.cli.chat import load_model
from pvc.cli.serve import served_name
from pvc.cli.shared import DTYPES, QUANTIZATIONS, examples, find_model, log, report_errors, show_status

EXAMPLES = examples("pvc web", "pvc web org/model --port 7860", "PVC_WEB_PASSWORD=... pvc web --host 0.0.0.0")
LOCAL = ("127.0.0.1", "::1", "localhost")
USER = "pvc"  # the login where there is a password


def web(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    host: Annotated[
        str, Option(help="Address to listen on; others than this need a password.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=1, max=65535)] = 7860,
    password: Annotated[
        str | None, Option(envvar="PVC_WEB_PASSWORD", help=f"Of the login {USER!r}; better as a variable.")
    ] = None,
    without_password: Annotated[
        bool, Option("--without-password", help="Let anybody ask who reaches --host.")
    ] = False,
    open_browser: Annotated[bool, Option("--open", help="Open the page in the browser.")] = False,
    device: Annotated[str | None, Option(help="cuda, cuda:1, mps, cpu, or auto: all GPUs.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: as saved.")] = "auto",
    quantize: Annotated[QUANTIZATIONS | None, Option(help="Load the LLM in 8 or 4 bits.")] = None,
    attn: Annotated[str | None, Option(help="sdpa, flash_attention_2, eager. Default: sdpa.")] = None,
    trust: Annotated[bool, Option("--trust-remote-code", help="Run a Hub model's code unasked.")] = False,
) -> None:
    """Ask a model about images and videos in the browser; needs the extra `web`, gradio.

    Without options the page is for this machine alone.
    """
    with report_errors():
        if host not in LOCAL and not password and not without_password:
            raise ValueError(
                f"--host {host} lets other machines ask: set PVC_WEB_PASSWORD, or pass --without-password"
            )
        with show_status("Loading") as status:
            page = import_page()
            folder = find_model(model or str(CHECKPOINT), trust, status)
            uploads = page.upload_folder()
            # who asks from elsewhere may send what breaks a decoder
            assistant = page.Assistant(
                *load_model(folder, device, dtype, quantize, attn), uploads, isolate=host not in LOCAL
            )

        is_tiny = os.path.samefile(folder, CHECKPOINT)
        if is_tiny:
            log(ABOUT_CHECKPOINT, style="yellow")
        blocks = page.build_page(
            assistant,
            title=served_name(model or str(CHECKPOINT), folder),
            note=ABOUT_CHECKPOINT if is_tiny else "",
            examples=page.example_messages(CHECKPOINT / "assets", uploads),
        )
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # ends as Ctrl-C does: uploads are removed
        log(f"http://{host}:{port}; Ctrl-C ends", style="green")
        blocks.launch(
            server_name=host,
            server_port=port,
            inbrowser=open_browser,
            auth=(USER, password) if password else None,
            **page.launch_options(),
        )


def import_page():  # noqa: ANN201  # a module that needs gradio
    """The module of the page.

    Raises:
        ImportError: gradio is not installed.
    """
    try:
        from pvc.serving.web import page
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "gradio":
            raise
        raise ImportError("the page needs gradio: install this package with its extra `web`") from error
    return page
