"""The benchmark of how a step's rows are fetched: both ways run, and the table has their ratios."""

from pvc.benchmarks import training_rows


def test_a_reduced_jpeg_is_compared_with_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(training_rows, "PHOTOGRAPHS", ((900, 900),))
    (row,) = training_rows.compare_decoding(1, tmp_path).splitlines()[2:]
    image, tiles, _, _, _, difference = row.strip("| ").split(" | ")
    assert (image, tiles) == ("900 x 900", "5") and float(difference) == 0  # half of it would be too small


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
