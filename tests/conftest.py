"""What holds in every test: no network, remote code in a folder of its own, one thread.

Set before transformers is imported. One thread, so that what must be equal bit for bit is.
"""

import os
import tempfile

import torch

_MODULES = tempfile.TemporaryDirectory(prefix="pvc-modules-")  # removed at exit


def pytest_configure():
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["HF_MODULES_CACHE"] = _MODULES.name
    torch.set_num_threads(1)
