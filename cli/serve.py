"""`pvc serve`: an OpenAI-compatible server of one model. The work is `serving/`'s."""

import logging
import os
from pathlib import Path
from typing import Annotated, Any

from typer import Argument, Option

from pvc import ABOUT_CHECKPOINT, CHECKPOINT
from pvc.cli.chat import load_model
from pvc.cli.shared import (
    DTYPES,
    FPS,
    FRAME_TOKENS,
    MAX_TILES,
    NUM_FRAMES,
    QUANTIZATIONS,
    VIDEO_TOKENS,
    drop_none,
    examples,
    find_model,
    log,
    report_errors,
    show_status,
)

EXAMPLES = examples(
    "pvc serve",
    "PVC_API_KEY=... pvc serve org/model --host 0.0.0.0 --port 8000",
    "pvc serve org/model --allow-media-domain images.example.org --allow-media-dir media",
)
MEBI = 2**20


def serve(
    model: Annotated[str, Argument(metavar="MODEL", help="Folder or Hub id.", show_default="PVC-Tiny")] = "",
    host: Annotated[
        str, Option(help="Address to listen on; others than this need an API key.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[str | None, Option(help="Of the model, for clients. Default: the folder's.")] = None,
    api_key: Annotated[
        str | None, Option(envvar="PVC_API_KEY", help="That requests must have; better as a variable.")
    ] = None,
    without_key: Annotated[bool, Option("--without-key", help="Let anybody ask who reaches --host.")] = False,
    allow_media_domain: Annotated[
        list[str], Option(metavar="HOST", help="Fetch media from this host; repeatable.")
    ] = (),  # type: ignore[assignment]
    allow_media_dir: Annotated[
        Path | None, Option(metavar="DIR", help="Read media that file:// addresses name in this folder.")
    ] = None,
    allow_host: Annotated[
        list[str], Option(metavar="NAME", help="Name by which a proxy asks for this server; repeatable.")
    ] = (),  # type: ignore[assignment]
    num_frames: NUM_FRAMES = None,
    fps: FPS = None,
    max_tiles: MAX_TILES = None,
    max_video_tokens: VIDEO_TOKENS = None,
    frame_tokens: FRAME_TOKENS = None,
    max_tokens: Annotated[int | None, Option(min=1, help="Of an answer. Default: 4096.")] = None,
    max_request_mib: Annotated[int | None, Option(min=1, help="Of a request. Default: 64.")] = None,
    max_batch: Annotated[int | None, Option(min=1, help="Requests answered at once. Default: 16.")] = None,
    max_waiting: Annotated[int | None, Option(min=0, help="Before 429 is answered. Default: 64.")] = None,
    cache_mib: Annotated[
        int | None, Option(min=0, help="For earlier turns of dialogues; 0: none. Default: 1024.")
    ] = None,
    timeout: Annotated[float | None, Option(help="Seconds of a request. Default: 300.")] = None,
    device: Annotated[str | None, Option(help="cuda, cuda:1, mps, cpu, or auto: all GPUs.")] = None,
    dtype: Annotated[DTYPES, Option(help="auto: as saved.")] = "auto",
    quantize: Annotated[QUANTIZATIONS | None, Option(help="Load the LLM in 8 or 4 bits.")] = None,
    attn: Annotated[str | None, Option(help="sdpa, flash_attention_2, eager. Default: sdpa.")] = None,
    trust: Annotated[bool, Option("--trust-remote-code", help="Run a Hub model's code unasked.")] = False,
) -> None:
    """Serve a model with OpenAI's API: /v1/chat/completions, /v1/models, /health, /metrics.

    Without options it listens on this machine alone, and takes images and videos as data: addresses alone.
    """
    limits = drop_none(
        tokens=max_tokens,
        request_bytes=max_request_mib and max_request_mib * MEBI,
        batch=max_batch,
        waiting=max_waiting,
        cache_bytes=None if cache_mib is None else cache_mib * MEBI,
        answer_s=timeout,
    )
    frames = {"num_frames" if fps is None else "max_frames": num_frames}
    visual_tokens = {"max_video_tokens": max_video_tokens, "frame_tokens": frame_tokens}
    processing = drop_none(**frames, fps=fps, max_tiles=max_tiles, **visual_tokens)

    with report_errors():
        with show_status("Loading") as status:
            from pvc.serving.limits import Limits
            from pvc.serving.server import Server, ServerOptions

            folder = find_model(model or str(CHECKPOINT), trust, status)
            options = ServerOptions(
                model_name=name or served_name(model, folder),
                host=host,
                port=port,
                media_domains=list(allow_media_domain),
                media_dir=checked_folder(allow_media_dir),
                api_key=api_key or None,
                allowed_hosts=list(allow_host),
                processing=processing,
                limits=Limits(**limits),
            )
            check_exposure(options, without_key)
            server = Server(*load_model(folder, device, dtype, quantize, attn), options)

        if os.path.samefile(folder, CHECKPOINT):
            log(ABOUT_CHECKPOINT, style="yellow")
        run(server, options)


def served_name(model: str, folder: str) -> str:
    """The name of a model for clients: its Hub id, or that of its folder."""
    if os.path.samefile(folder, CHECKPOINT):
        return "PVC-Tiny"
    return os.path.basename(os.path.realpath(folder)) if os.path.isdir(model) else model


def checked_folder(folder: Path | None) -> Path | None:
    """The folder; raises an OSError where it is none."""
    if folder is not None and not folder.is_dir():
        raise NotADirectoryError(f"--allow-media-dir {folder} is no folder")
    return folder


def check_exposure(options: Any, without_key: bool) -> None:
    """Raises a ValueError where other machines could ask without a key."""
    if not options.is_local and options.api_key is None and not without_key:
        raise ValueError(
            f"--host {options.host} lets other machines ask: set PVC_API_KEY, or pass --without-key"
        )


def run(server: Any, options: Any) -> None:
    """Serves until Ctrl-C; a line on stderr for each request."""
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    logging.getLogger("pvc.serving").setLevel(logging.INFO)

    at = f"http://{options.host}:{options.port}/v1"
    log(f"{options.model_name} at {at}; Ctrl-C ends", style="green")
    server.run()
    if not server.started:
        raise OSError(f"cannot listen on {options.host}, port {options.port}")
