"""A Hugging Face Space: the page of `pvc web`, for the model that the variable MODEL names."""

import os

from huggingface_hub import snapshot_download

from pvc import CHECKPOINT
from pvc.cli.chat import load_model
from pvc.serving.web.page import Assistant, build_page, example_messages, launch_options, upload_folder

MODEL = os.environ.get("MODEL", "")  # a Hub id; empty: PVC-Tiny, which the package contains

folder = snapshot_download(MODEL) if MODEL else str(CHECKPOINT)
uploads = upload_folder()

# a Space is open to everybody: files are decoded in processes of their own
assistant = Assistant(*load_model(folder, None, "auto", None, None), uploads, isolate=True)
page = build_page(
    assistant, title=MODEL or "PVC-Tiny", examples=example_messages(CHECKPOINT / "assets", uploads)
)

if __name__ == "__main__":
    page.launch(**launch_options())
