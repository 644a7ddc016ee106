"""The model, the data and the log that tests of training share."""

import logging

import pytest
from training_files import write_mixed
from training_runs import write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_mixed(tmp_path_factory.mktemp("data"))


@pytest.fixture
def warned(caplog):
    """What was logged."""
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    yield lambda: [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    logger.removeHandler(caplog.handler)
