"""Fixtures of the tests of the server."""

import pytest


@pytest.fixture(scope="session")
def tiny():
    """PVC-Tiny and its processor."""
    from servers import pvc_tiny  # here: what holds in every test is set before transformers is imported

    return pvc_tiny()


@pytest.fixture(scope="session")
def server(tiny):
    """PVC-Tiny, served with what is the default."""
    from servers import running

    with running(*tiny) as served:
        yield served


@pytest.fixture(scope="session")
def talking():
    """A model that answers at length."""
    from servers import running, talker

    with running(*talker()) as served:
        yield served
