"""Samples in tar shards: those of the same files in folders, in any order, wherever the shards lie."""

import io
import json
import tarfile
from itertools import islice

import fsspec
import pytest
import torch
from training_files import dialogue, tiny_processor, write_image, write_meta, write_video

from pvc.training.data.loader import DataOptions, PackedDataset, PackLoader
from pvc.training.data.meta import read_meta
from pvc.training.data.samples import KINDS, BrokenSample

OPTIONS = DataOptions(max_tokens=160, min_frames=2, max_frames=4, streams=2, pool=3, seed=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Nine samples as files, and the same in two shards."""
    folder = tmp_path_factory.mktemp("shards")
    images = [write_image(folder / f"{i}.png", (100, 56 + 30 * i), i) for i in range(4)]
    video = write_video(folder / "a.mp4", 6)
    records = [dialogue(f"<image>\nWhat is {i}?", "It.", image=name) for i, name in enumerate(images)]
    records += [dialogue(f"Say {i}", "so") for i in range(3)]
    records += [
        dialogue("<image> or <image>?", "One.", image=images[:2]),
        dialogue("<video>\nAnd?", "It moves.", video=video),
    ]
    write_meta(folder, one=[{}, *records]).rename(folder / "files.json")
    for shard, part in (("0.tar", records[:5]), ("1.tar", records[5:])):
        write_shard(folder, shard, part)
    (folder / "shards.json").write_text(json.dumps({"one": {"shards": "*.tar"}}))
    return folder


def write_shard(folder, name, records):
    with tarfile.open(folder / name, "w") as tar:
        for i, record in enumerate(records):
            record = dict(record)
            for kind in ("image", "video"):
                named = record.get(kind, [])
                files = [named] if isinstance(named, str) else named
                members = [f"part/{name[0]}{i:04}.{n}.{file}" for n, file in enumerate(files)]
                for file, member in zip(files, members):
                    tar.add(folder / file, member)
                if members and kind == "image" and len(members) > 1:
                    record[kind] = members
                elif members:  # it stands beside its record, whatever that says
                    del record[kind]
            content = json.dumps(record).encode()
            info = tarfile.TarInfo(f"part/{name[0]}{i:04}.json")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def loader(meta, workers=0) -> PackLoader:
    return PackLoader(PackedDataset(meta, tiny_processor(), OPTIONS), num_workers=workers)


def equal(one: list[dict], other: list[dict]) -> bool:
    return len(one) == len(other) and all(
        a.keys() == b.keys() and all(torch.equal(torch.as_tensor(a[x]), torch.as_tensor(b[x])) for x in a)
        for a, b in zip(one, other)
    )


@pytest.mark.parametrize("workers", [0, 2])
def test_rows_of_shards_are_those_of_the_same_files_and_go_on_exactly(folder, workers):
    expected = list(islice(loader(folder / "files.json"), 7))
    first = loader(folder / "shards.json", workers)
    assert equal(list(islice(first, 3)), expected[:3])
    second = loader(folder / "shards.json")
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert equal(list(islice(second, 4)), expected[3:])


def test_shards_may_lie_wherever_fsspec_reads(folder, tmp_path):
    memory = fsspec.filesystem("memory")
    for name in ("0.tar", "1.tar"):
        memory.pipe_file(f"/bucket/{name}", (folder / name).read_bytes())
    meta = tmp_path / "meta.json"
    meta.write_text(json.dumps({"one": {"shards": ["memory://bucket/0.tar", "memory://bucket/1.tar"]}}))
    assert equal(list(islice(loader(meta), 3)), list(islice(loader(folder / "files.json"), 3)))


def test_kinds_are_known_from_names_and_only_headers_are_read_before_a_row(folder):
    (shards,), (files,) = (read_meta(folder / name) for name in ("shards.json", "files.json"))
    assert shards.kinds.tolist() == files.kinds.tolist()
    assert [KINDS[kind] for kind in shards.kinds] == ["image"] * 4 + ["text"] * 3 + ["image", "video"]
    for i in range(4):
        (one,), (other,) = shards.read(i).images, files.read(i).images
        assert one.size() == other.size()


def test_what_is_wrong_with_a_shard_or_a_sample_is_said(folder, tmp_path):
    def meta(**entry):
        (tmp_path / "meta.json").write_text(json.dumps({"one": entry}))
        return tmp_path / "meta.json"

    with pytest.raises(ValueError, match="'none-.*tar': no such file"):
        read_meta(meta(shards="none-*.tar"))
    with pytest.raises(ValueError, match="expected a file, a pattern"):
        read_meta(meta(shards=[]))
    (tmp_path / "a.tar").write_bytes(b"not a tar file" * 99)
    with pytest.raises(ValueError, match="a.tar is not a tar file"):
        len(read_meta(meta(shards="a.tar"))[0])

    with tarfile.open(tmp_path / "b.tar", "w") as tar:
        for name, text in (
            ("0.json", b"{"),
            ("1.json", json.dumps(dialogue("<image>?", "A", image="x.png")).encode()),
        ):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text))
    (shards,) = read_meta(meta(shards="b.tar"))
    with pytest.raises(BrokenSample, match="b.tar/0: "):
        shards.read(0)
    with pytest.raises(BrokenSample, match="b.tar/1: no such file in the sample: x.png"):
        shards.read(1)
