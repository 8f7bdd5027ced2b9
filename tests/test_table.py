import csv
import json

import pytest

from keras_capsvit import evaluate

TABLE = evaluate.Table([{"attack": "PGD", "accuracy": 0.123456, "steps": 40}, {"attack": "FGSM", "accuracy": 1.0}])


def test_prints_aligned_columns():
    assert str(TABLE).splitlines() == [
        "attack  accuracy  steps",
        "PGD       0.1235     40",
        "FGSM           1",
    ]
    assert str(evaluate.Table([])) == ""


def test_columns_by_name():
    assert TABLE.columns == ["attack", "accuracy", "steps"]
    assert TABLE["steps"] == [40, None]
    with pytest.raises(KeyError, match=r"No column 'norm'; there are \['attack'"):
        _ = TABLE["norm"]


def test_writes_json_and_csv(tmp_path):
    TABLE.to_json(tmp_path / "new" / "table.json", seed=3)
    written = json.loads((tmp_path / "new" / "table.json").read_text())
    assert written == {"result": TABLE.rows, "seed": 3, "versions": evaluate.versions()}
    assert {"python", "backend", "keras", "numpy"} <= set(written["versions"])
    TABLE.to_csv(tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"attack": "PGD", "accuracy": "0.123456", "steps": "40"}
    assert rows[1]["steps"] == ""
