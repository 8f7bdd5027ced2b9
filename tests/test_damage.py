"""A short run of ``damage.py``: no damaged file is read wrong, nor refused in words that are not ours."""

import pytest

KINDS = ("npz", "npz deflated", "safetensors", "weights.h5", "keras", "mat", "mat deflated", "png", "jpeg", "results")
MEGABYTES = 64


@pytest.mark.tensorflow
def test_damaged_files_are_read_right_or_refused(tmp_path, monkeypatch):
    import damage
    from damaged import damages, trial

    monkeypatch.setattr(damages, "BOMB", 2**27)
    trials, results = trial.Trials(tmp_path), []
    for planned in damage.trials(60, 16, KINDS):
        outcome, text, memory = trials.run(*planned)
        assert outcome in ("right", "alike", "documented"), (planned, text)
        assert memory < MEGABYTES, planned
        results.append(outcome)
    assert results.count("documented") > 30
    assert results.count("right") > 2


def test_the_table_counts_outcomes():
    import damage

    results = [("npz", "cut", 0, "documented", "", 3.0), ("npz", "cut", 1, "HANG", "", 0.0)]
    lines = damage.table(results)
    assert lines[0].split() == ["kind", "damage", "right", "alike", "documented", "HANG", "MB"]
    assert lines[1].split() == ["npz", "cut", "1", "1", "3"]
    assert lines[2].split() == ["all", "2", "1", "1", "3"]
