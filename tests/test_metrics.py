from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from sklearn import metrics as sk

from hf_kdmri.evaluation import ClassificationReport, classification_metrics, patient_metrics

NAMES = ["meningioma", "glioma", "pituitary"]


@pytest.fixture
def scores() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """200 softmax rows, labels that they hit about two times in three, and 40 patients of one class each."""
    rng = np.random.default_rng(0)
    patients = rng.integers(0, 40, 200)
    labels = patients % 3
    logits = rng.normal(size=(200, 3)) + 1.2 * np.eye(3)[labels]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels, np.array([f"P{p:03d}" for p in patients])


def test_every_number_equals_scikit_learn(scores) -> None:
    probabilities, labels, _ = scores
    predicted = probabilities.argmax(1)
    report = classification_metrics(probabilities, labels, NAMES)
    assert report["accuracy"] == pytest.approx(sk.accuracy_score(labels, predicted))
    assert report["macro_f1"] == pytest.approx(sk.f1_score(labels, predicted, average="macro"))
    assert report["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(labels, predicted))
    assert list(report["recall_per_class"].values()) == pytest.approx(sk.recall_score(labels, predicted, average=None))
    assert report["confusion_matrix"] == sk.confusion_matrix(labels, predicted).tolist()
    assert report["mcc"] == pytest.approx(sk.matthews_corrcoef(labels, predicted))
    assert report["macro_auroc"] == pytest.approx(sk.roc_auc_score(labels, probabilities, multi_class="ovr"))
    assert report["macro_average_precision"] == pytest.approx(
        sk.average_precision_score(np.eye(3)[labels], probabilities)
    )
    assert report["brier"] == pytest.approx(3 * sk.mean_squared_error(np.eye(3)[labels], probabilities))
    for key, expected in {
        "precision_per_class": sk.precision_score(labels, predicted, average=None),
        "f1_per_class": sk.f1_score(labels, predicted, average=None),
        "auroc_per_class": sk.roc_auc_score(np.eye(3)[labels], probabilities, average=None),
        "average_precision_per_class": sk.average_precision_score(np.eye(3)[labels], probabilities, average=None),
    }.items():
        assert list(report[key].values()) == pytest.approx(expected), key
    assert report["n"] == 200


def test_by_hand() -> None:
    probabilities = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.2, 0.2, 0.6]]
    report = classification_metrics(probabilities, [0, 1, 1, 2], NAMES)
    assert report["confusion_matrix"] == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert report["accuracy"] == 0.75
    assert report["recall_per_class"] == {"meningioma": 1.0, "glioma": 0.5, "pituitary": 1.0}
    assert report["balanced_accuracy"] == pytest.approx(2.5 / 3)
    assert report["macro_f1"] == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert report["precision_per_class"] == {"meningioma": 0.5, "glioma": 1.0, "pituitary": 1.0}
    assert report["f1_per_class"] == pytest.approx({"meningioma": 2 / 3, "glioma": 2 / 3, "pituitary": 1.0})
    # meningioma: .7 outranks all others; glioma: .8 and .3 outrank .2 and .2
    assert report["auroc_per_class"] == {"meningioma": 1.0, "glioma": 1.0, "pituitary": 1.0}
    assert report["mcc"] == pytest.approx((3 * 4 - 5) / np.sqrt((16 - 6) * (16 - 6)))
    assert report["brier"] == pytest.approx((0.14 + 0.06 + 0.86 + 0.24) / 4)


def test_areas_by_hand() -> None:
    positive = np.array([0.9, 0.6, 0.6, 0.2])  # true: yes, no, yes, no
    report = classification_metrics(np.stack([1 - positive, positive], axis=1), [1, 0, 1, 0], ["no", "yes"])
    assert report["auroc_per_class"]["yes"] == pytest.approx((1 + 1 + 0.5 + 1) / 4)  # of four pairs one is a tie
    assert report["average_precision_per_class"]["yes"] == pytest.approx(0.5 * 1 + 0.5 * 2 / 3)


@pytest.mark.filterwarnings("error")
def test_what_does_not_exist_is_none_and_what_tells_nothing_is_zero() -> None:
    report = classification_metrics(np.eye(3)[[0, 1, 1]], [0, 1, 1], NAMES)
    for key in ("recall", "precision", "f1", "auroc", "average_precision"):
        assert report[f"{key}_per_class"]["pituitary"] is None
    assert report["macro_auroc"] == 1.0
    predicted_but_absent = classification_metrics(np.eye(3)[[0, 1, 2]], [0, 1, 1], NAMES)
    assert predicted_but_absent["precision_per_class"]["pituitary"] == 0
    assert predicted_but_absent["f1_per_class"]["pituitary"] == 0
    never_predicted = classification_metrics(np.eye(3)[[0, 0, 0]], [0, 1, 2], NAMES)
    assert never_predicted["precision_per_class"]["glioma"] is None
    assert never_predicted["f1_per_class"]["glioma"] == 0
    assert never_predicted["mcc"] == 0
    one_class = classification_metrics(np.eye(3)[[0, 1]], [1, 1], NAMES)
    for key in ("mcc", "macro_auroc", "macro_average_precision"):
        assert one_class[key] is None
    json.dumps(one_class, allow_nan=False)


def test_a_class_without_slices_lowers_macro_f1_but_not_balanced_accuracy() -> None:
    report = classification_metrics(np.eye(3)[[0, 1, 1]], [0, 1, 1], NAMES)
    assert report["macro_f1"] == pytest.approx(2 / 3)
    assert report["balanced_accuracy"] == 1.0
    assert report["recall_per_class"]["pituitary"] is None
    json.dumps(report, allow_nan=False)


def test_patients_are_judged_by_mean_probability_not_by_majority() -> None:
    probabilities = [[0.55, 0.45, 0], [0.55, 0.45, 0], [0.05, 0.95, 0], [0, 0, 1.0]]  # mean of the first three: glioma
    report = patient_metrics(probabilities, [1, 1, 1, 2], ["a", "a", "a", "b"], NAMES)
    assert report["n"] == 2
    assert report["accuracy"] == 1.0


def test_patients_equal_a_pandas_group_by(scores) -> None:
    pd = pytest.importorskip("pandas")
    probabilities, labels, groups = scores
    frame = pd.DataFrame(probabilities).assign(label=labels, group=groups).groupby("group").mean()
    expected = sk.accuracy_score(frame["label"].astype(int), frame[[0, 1, 2]].to_numpy().argmax(1))
    report = patient_metrics(probabilities, labels, groups, NAMES)
    assert report["accuracy"] == pytest.approx(expected)
    assert report["n"] == len(frame)


def test_the_metric_gives_what_the_functions_give(scores, tmp_path, monkeypatch) -> None:
    probabilities, labels, groups = scores
    probabilities = probabilities.astype(np.float32)
    metric = ClassificationReport(NAMES, cache_dir=str(tmp_path / "cache"))
    result = metric.compute(predictions=probabilities, references=labels, groups=groups)
    patients = patient_metrics(probabilities, labels, groups, NAMES)
    assert result["accuracy"] == classification_metrics(probabilities, labels, NAMES)["accuracy"]
    assert result["patients"] == patients
    assert result["patient_accuracy"] == patients["accuracy"]
    assert result["patient_macro_f1"] == patients["macro_f1"]
    assert not (tmp_path / "cache").exists()
    json.dumps(result, allow_nan=False)


def test_the_metric_collects_batches_and_takes_names_late(scores) -> None:
    probabilities, labels, _ = scores
    metric = ClassificationReport()
    for start in range(0, 200, 64):
        metric.add_batch(predictions=probabilities[start : start + 64], references=labels[start : start + 64])
    assert metric.compute(class_names=NAMES) == classification_metrics(probabilities, labels, NAMES)
    with pytest.raises(ValueError, match="class names are missing"):
        metric.compute(predictions=probabilities, references=labels)
    assert metric.compute(predictions=probabilities[:9], references=labels[:9], class_names=NAMES)["n"] == 9


def test_threads_can_share_a_metric(scores) -> None:
    probabilities, labels, _ = scores
    metric, results = ClassificationReport(NAMES), {}

    def score(size: int) -> None:
        results[size] = metric.compute(predictions=probabilities[:size], references=labels[:size])["n"]

    threads = [threading.Thread(target=score, args=(size,)) for size in range(20, 36)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {size: size for size in range(20, 36)}


GOOD = np.full((2, 3), 1 / 3)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (GOOD[0], [0], r"shape \(3,\); expected \(N, 3\)"),
        (GOOD[:, :2], [0, 1], r"expected \(N, 3\)"),
        (GOOD, [0], r"labels have shape \(1,\); expected \(2,\)"),
        (GOOD, [0, 3], "label 3 in row 1 is out of range"),
        (GOOD, [-1, 0], "label -1 in row 0 is out of range"),
        (GOOD, [0.0, 1.0], "expected integers"),
        (GOOD + 0.1, [0, 1], "sum to 1.3000.*softmax"),
        ([[1.5, -0.5, 0], [1, 0, 0]], [0, 1], "row 0"),
        ([[np.nan, 0, 1], [1, 0, 0]], [0, 1], "row 0 are not finite"),
        (GOOD[:0], [], "nothing to score"),
    ],
)
def test_bad_input_is_refused_by_name(probabilities, labels, message) -> None:
    with pytest.raises(ValueError, match=message):
        classification_metrics(probabilities, labels, NAMES)


def test_half_precision_rows_pass() -> None:
    rows = np.array([[0.3335, 0.3335, 0.3335]], dtype=np.float16)
    assert classification_metrics(rows, [0], NAMES)["n"] == 1


def test_doubled_class_names_are_refused() -> None:
    with pytest.raises(ValueError, match="different names"):
        classification_metrics(GOOD, [0, 1], ["a", "a", "b"])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "a"], "patient 'a' has two labels, meningioma and glioma"),
        (["a"], r"groups have shape \(1,\)"),
        (["a", None], "row 1 is missing"),
        ([1.0, float("nan")], "row 1 is missing"),
    ],
)
def test_bad_groups_are_refused_by_name(groups, message) -> None:
    with pytest.raises(ValueError, match=message):
        patient_metrics(GOOD, [0, 1], groups, NAMES)
