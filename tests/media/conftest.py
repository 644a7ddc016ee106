"""Fixtures of the tests of images and videos."""

import pytest
from media_server import Server

from pvc import CHECKPOINT
from pvc.processing_pvc import PVCImageProcessor, PVCProcessor
from pvc.tokenization_internlm2 import InternLM2Tokenizer


@pytest.fixture
def images() -> PVCImageProcessor:
    return PVCImageProcessor(image_size=28, patch_size=14, downsample_ratio=0.5, max_tiles=2)


@pytest.fixture
def processor(images) -> PVCProcessor:
    return PVCProcessor(images, InternLM2Tokenizer.from_pretrained(CHECKPOINT), num_frames=4)


@pytest.fixture
def serve(monkeypatch):
    """Starts a server with an answer."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    servers = []

    def start(answer) -> Server:
        servers.append(Server(answer))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
