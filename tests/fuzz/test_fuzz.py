"""Damaged files are read or refused with a documented error, in time and within memory."""

import pytest

from .runner import inputs, run
from .seeds import PLAYLISTS, make
from .targets import TARGETS

pytestmark = pytest.mark.slow  # what is read does not depend on the version of transformers

# 25 seconds on one core, all kinds together; `make fuzz` goes on for hours
COUNTS = {"image": 800, "video": 300, "json": 200, "safetensors": 120}
SEED = 18
NEEDED = ("png", "jpeg", "webp", "gif", "bmp", "tiff", "ppm", "avif", "mpo")  # other formats may be refused
INCOMPLETE = ("model.safetensors.index.json", "released.json")  # of other weights than those beside them


@pytest.mark.parametrize("kind", COUNTS)
def test_damaged_files_are_read_or_refused_with_a_documented_error(kind):
    report = run(kind, SEED, COUNTS[kind], seconds=None)

    assert report.count == COUNTS[kind]
    assert report.read > 0
    assert not report.findings, str(report)


def test_an_input_is_the_same_in_every_run():
    first, second = inputs("json", SEED, 40, 40), inputs("json", SEED)
    again = {input_.number: input_.content for input_, _ in zip(second, range(200))}

    for input_, _ in zip(first, range(4)):
        assert input_.content == again[input_.number]


@pytest.mark.parametrize("kind", COUNTS)
def test_an_undamaged_file_is_read_in_every_way(kind, tmp_path):
    """Else a mistake of these tests could pass for a refusal."""
    read = []
    for seed in make(kind):
        may_be_refused = kind == "image" and seed.name.rpartition(".")[2] not in NEEDED
        if may_be_refused or seed.name in PLAYLISTS or seed.name in INCOMPLETE:
            continue

        folder = tmp_path / seed.target
        folder.mkdir(exist_ok=True)
        for number in range(12):
            TARGETS[seed.target](seed.content, seed.name, number, folder)
        read.append(seed.name)

    assert read
