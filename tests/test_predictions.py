from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_kdmri.evaluation.statistics.predictions import Predictions

NAMES = ("meningioma", "glioma", "pituitary")


def fields(**changes: Any) -> dict[str, Any]:
    """Six slices of four patients in two folds, two models."""
    rng = np.random.default_rng(0)
    return {
        "slices": [1, 2, 3, 4, 5, 6],
        "pids": ["MR01", "MR01B", "0002", "0002", "3", "4"],
        "patient_groups": ["MR01", "MR01", "0002", "0002", "3", "4"],
        "folds": [0, 0, 0, 0, 1, 1],
        "labels": [1, 1, 0, 0, 2, 0],
        "class_names": NAMES,
        "probabilities": {model: rng.dirichlet(np.ones(3), 6) for model in ("student", "teacher")},
        "attributes": {
            "plane": ["axial", "coronal", "sagittal", "axial", "axial", "axial"],
            "height": [512, 512, 256, 256, 512, 512],
            "lesion_area": [0.1, 0.02, np.nan, 0.03, 0.05, 0.0],
        },
        **changes,
    }


def assert_same(one: Predictions, other: Predictions) -> None:
    for name in ("slices", "pids", "patient_groups", "folds", "labels"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(a, b)
        assert a.dtype.kind == b.dtype.kind
    assert one.class_names == other.class_names
    assert one.models == other.models
    for model in one.models:
        np.testing.assert_array_equal(one.probabilities[model], other.probabilities[model])  # to the last bit
    assert list(one.attributes) == list(other.attributes)
    for name in one.attributes:
        np.testing.assert_array_equal(one.attributes[name], other.attributes[name])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("attributes", [fields()["attributes"], {}, {"height": [512] * 6}])
def test_what_is_written_is_read(tmp_path, suffix, attributes) -> None:
    predictions = Predictions(**fields(attributes=attributes))
    path = predictions.write(tmp_path / "new" / f"predictions{suffix}")
    assert_same(Predictions.read(path), predictions)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_the_file_is_flat_and_says_what_it_holds(tmp_path) -> None:
    table = pq.read_table(Predictions(**fields()).write(tmp_path / "p.parquet"))
    assert table.column_names == [
        *("slice", "pid", "patient_group", "fold", "label"),
        *("teacher_meningioma", "teacher_glioma", "teacher_pituitary"),
        *("student_meningioma", "student_glioma", "student_pituitary"),
        *("plane", "height", "lesion_area"),
    ]
    assert table["label"].to_pylist()[:3] == ["glioma", "glioma", "meningioma"]
    assert table.schema.metadata[b"hf_kdmri.class_names"] == b'["meningioma", "glioma", "pituitary"]'
    assert table.schema.metadata[b"hf_kdmri.format_version"] == b"1"


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch) -> None:
    path = Predictions(**fields()).write(tmp_path / "p.parquet")
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        Predictions(**fields()).write(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_foreign_parquet_file_is_read_by_its_columns(tmp_path) -> None:
    path = Predictions(**fields()).write(tmp_path / "p.parquet")
    pq.write_table(pq.read_table(path).to_pandas().pipe(pa.Table.from_pandas).replace_schema_metadata({}), path)
    assert_same(Predictions.read(path), Predictions(**fields()))


def test_patients_are_means_over_slices() -> None:
    predictions = Predictions(**fields())
    groups, index = predictions.group_index()
    means, labels = predictions.patients()
    assert groups.tolist() == ["0002", "3", "4", "MR01"]
    assert labels.tolist() == [0, 2, 0, 1]
    np.testing.assert_allclose(means["student"][3], predictions.probabilities["student"][:2].mean(axis=0))
    assert groups[index].tolist() == predictions.patient_groups.tolist()


@given(st.permutations(range(6)))
def test_selecting_and_pooling_undo_each_other(order) -> None:
    predictions = Predictions(**fields())
    shuffled = predictions.select(np.array(order))
    back = Predictions.concatenate([shuffled.select(shuffled.folds == fold) for fold in (0, 1)])
    assert_same(back.select(np.argsort(back.slices)), predictions)
    means, labels = predictions.patients()
    others, other_labels = shuffled.patients()
    np.testing.assert_allclose(means["teacher"], others["teacher"])
    assert labels.tolist() == other_labels.tolist()


BAD_ROW = np.full((6, 3), 1 / 3)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slices": [1, 2, 3, 4, 5, 5]}, r"slice 5 stands in several rows \(of folds 1, 1"),
        ({"slices": [[1, 2, 3, 4, 5, 6]]}, r"slices have shape \(1, 6\)"),
        ({"slices": []}, "there are no slices"),
        ({"pids": [1, 2, 3, 4, 5, 6]}, "pids have type int64 .*expected str, none missing"),
        ({"pids": ["a", "b", "c", "d", "e", None]}, "pids have type object"),
        ({"pids": ["a", "b", "c", "d", "e", ""]}, "pids of slice 6 is empty"),
        ({"patient_groups": ["", "b", "c", "d", "e", "f"]}, "patient_groups of slice 1 is empty"),
        ({"patient_groups": ["a", "a", "a", "c", "d", "e"]}, "patient group 'a' has slices of two classes"),
        ({"patient_groups": list("aabbcb")}, "patient group 'b' was tested in folds 0, 1.*disjoint_groups=False"),
        ({"folds": [0.0, 0, 0, 0, 1, 1]}, "folds have type float64"),
        ({"folds": [0]}, r"folds have shape \(1,\)"),
        ({"labels": [1, 1, 0, 0, 3, 0]}, "teacher: label 3 in row 4 is out of range"),
        ({"labels": [1, 1, 0, 0, 2]}, r"labels have shape \(5,\)"),
        ({"class_names": "abc"}, "must be a list of different names"),
        ({"class_names": ("a", "b")}, r"expected \(N, 2\)"),
        ({"probabilities": {}}, "at least one of teacher, baseline, student"),
        ({"probabilities": {"ensemble": BAD_ROW}}, "unknown model 'ensemble'.*teacher, baseline, student"),
        ({"probabilities": {"student": BAD_ROW + 0.1}}, "student: .*sum to 1.3.*softmax"),
        ({"probabilities": {"student": BAD_ROW * np.nan}}, "student: probabilities in row 0 are not finite"),
        ({"attributes": {"age": [1] * 6}}, "unknown attribute 'age'; expected some of plane, height, lesion_area"),
        ({"attributes": {"height": [1.5] * 6}}, "height have type float64"),
        ({"attributes": {"lesion_area": [0, 0, 0, 0, 0, 7.0]}}, "lesion_area of slice 6 is 7.0.*0..1, or NaN"),
    ],
)
def test_contradictions_are_refused_by_name(changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        Predictions(**fields(**changes))


def test_a_leaking_split_is_read_when_asked_for(tmp_path) -> None:
    leaking = fields(patient_groups=list("aabbcb"))
    path = Predictions(**leaking, disjoint_groups=False).write(tmp_path / "p.parquet")
    with pytest.raises(ValueError, match=r"p\.parquet: patient group 'b' was tested in folds 0, 1"):
        Predictions.read(path)
    assert not Predictions.read(path, disjoint_groups=False).disjoint_groups


def test_pooling_refuses_what_does_not_belong_together() -> None:
    predictions = Predictions(**fields())
    first, second = predictions.select(predictions.folds == 0), predictions.select(predictions.folds == 1)
    assert_same(Predictions.concatenate([first, second]), predictions)
    with pytest.raises(ValueError, match="slice 1 stands in several rows"):
        Predictions.concatenate([first, first])
    with pytest.raises(ValueError, match="nothing to pool"):
        Predictions.concatenate([])
    other = Predictions(**fields(probabilities={"student": BAD_ROW})).select(np.array([4, 5]))
    with pytest.raises(ValueError, match=r"part 1 has models \('student',\), part 0 has \('teacher', 'student'\)"):
        Predictions.concatenate([first, other])
    with pytest.raises(ValueError, match="part 1 has attributes"):
        Predictions.concatenate([first, Predictions(**fields(attributes={})).select(np.array([4, 5]))])
    with pytest.raises(ValueError, match="part 1 has class_names"):
        Predictions.concatenate([first, Predictions(**fields(class_names=("a", "b", "c"))).select(np.array([4, 5]))])


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("fold", None, "the column 'fold' is missing .*the file has slice, pid.*Predictions.write"),
        ("student_glioma", None, "the column 'student_glioma' is missing"),
        ("label", ["edema"] * 6, "the label 'edema' of slice 1 is not one of meningioma, glioma, pituitary"),
        ("teacher_glioma", [0.5, None, 0.5, 0.5, 0.5, 0.5], "the column 'teacher_glioma' has 1 empty cells"),
        ("teacher_glioma", [7.0] * 6, "teacher: probabilities in row 0 .* sum to"),
        ("height", [512, 512, None, 512, 512, 512], "height have type float64"),
    ],
)
def test_damaged_files_are_refused_by_name(tmp_path, suffix, column, values, message) -> None:
    path = Predictions(**fields()).write(tmp_path / f"damaged{suffix}")
    table = pq.read_table(path) if suffix == ".parquet" else pa_csv.read_csv(path)
    at = table.column_names.index(column)
    table = table.remove_column(at) if values is None else table.set_column(at, column, pa.array(values))
    pq.write_table(table, path) if suffix == ".parquet" else pa_csv.write_csv(table, path)
    with pytest.raises(ValueError, match=rf"damaged\{suffix}: .*{message}"):
        Predictions.read(path)


def test_other_files_are_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"ends in '.npz'; predictions are kept as .parquet or .csv"):
        Predictions(**fields()).write(tmp_path / "p.npz")
    with pytest.raises(FileNotFoundError):
        Predictions.read(tmp_path / "absent.parquet")
    (tmp_path / "text.parquet").write_text("no Parquet")
    with pytest.raises(ValueError, match=r"text\.parquet: "):
        Predictions.read(tmp_path / "text.parquet")
    (tmp_path / "bare.csv").write_text("slice,pid,patient_group,fold,label\n1,a,a,0,glioma\n")
    with pytest.raises(ValueError, match="no column begins with teacher_ or baseline_ or student_"):
        Predictions.read(tmp_path / "bare.csv")
    path = Predictions(**fields()).write(tmp_path / "p.parquet")
    table = pq.read_table(path)
    pq.write_table(table.replace_schema_metadata({**table.schema.metadata, b"hf_kdmri.format_version": b"2"}), path)
    with pytest.raises(ValueError, match="format version 2 is not known; this hf_kdmri reads version 1"):
        Predictions.read(path)
