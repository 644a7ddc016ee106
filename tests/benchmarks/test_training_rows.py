"""The benchmark of how a step's rows are fetched: both ways run, and the table has their ratios."""

from pvc.benchmarks import training_rows


def test_files_decoded_at_their_tiles_scale_are_compared_with_whole_ones(tmp_path, monkeypatch):
    monkeypatch.setattr(training_rows, "PHOTOGRAPHS", ((900, 900),))
    monkeypatch.setattr(training_rows, "VIDEOS", ((640, 480),))
    monkeypatch.setattr(training_rows, "VIDEO_FRAMES", 2)
    table = training_rows.compare_decoding(1, tmp_path)
    photograph, video = [line.strip("| ").split(" | ") for line in table.splitlines()[2:]]

    assert photograph[:2] == ["JPEG 900 x 900", "5"]
    assert float(photograph[-1]) == 0  # half of it would be too small
    assert video[:2] == ["H.264 640 x 480", "2"] and float(video[-1]) > 0


def test_both_ways_are_measured_and_compared(tmp_path):
    meta = training_rows.write_data(tmp_path)
    found = {
        way: [training_rows.fetch(way, training_rows.make_dataset(meta, 56, max_tokens=128), 3)]
        for way in training_rows.WAYS
    }
    all_rows, needed = (found[way][0] for way in ("all", "needed"))
    first, whole, _ = training_rows.COLUMNS
    assert 0 < needed[first] < needed[whole]
    assert all_rows[first] <= all_rows[whole]

    found["needed"] = [{name: value / 4 for name, value in all_rows.items()}]
    found["all"][0]["memory MB"] = found["needed"][0]["memory MB"] = 1.0
    assert training_rows.as_table(found, 3).endswith("| ratio | 0.250 | 0.250 | 1.000 |")
