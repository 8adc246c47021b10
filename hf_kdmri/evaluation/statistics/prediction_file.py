"""The file that holds test predictions: flat columns, so that any tool reads it, as Parquet or CSV.

    slice, pid, patient_group, fold, label, teacher_meningioma, …, student_pituitary[, plane, height, lesion_area]

`label` holds the class's name, because three orders of these classes are in use. Parquet files carry the class names,
the models and the version of the format in the schema's metadata; in a CSV file they follow from the columns' names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from hf_kdmri.whole_files import whole_file

FORMAT_VERSION = 1
_COLUMNS = {
    "slice": pa.int64(),
    "pid": pa.string(),
    "patient_group": pa.string(),
    "fold": pa.int64(),
    "label": pa.string(),
}
_VERSION_KEY, _CLASSES_KEY, _MODELS_KEY = (f"hf_kdmri.{key}" for key in ("format_version", "class_names", "models"))

Arrays = dict[str, NDArray[Any]]


def write_prediction_file(
    path: str | Path,
    columns: Mapping[str, NDArray[Any]],
    class_names: Sequence[str],
    probabilities: Mapping[str, NDArray[np.float64]],
    attributes: Mapping[str, NDArray[Any]],
) -> Path:
    """Write a file, whole or not at all; `Predictions.write` is the way to call it.

    Args:
        path: ends in .parquet or .csv; its folders are made.
        columns: slice, pid, patient_group, fold and label (a class name), each (N,).
        class_names: C names in label order.
        probabilities: model to (N, C).
        attributes: further columns, each (N,).

    Raises:
        ValueError: The name ends in neither .parquet nor .csv.
        OSError: The disk is full or not writable.
    """
    path, suffix = Path(path), _suffix(path)
    flat = {f"{model}_{name}": p[:, c] for model, p in probabilities.items() for c, name in enumerate(class_names)}
    table = pa.table({name: pa.array(values) for name, values in {**columns, **flat, **attributes}.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as stream:
        if suffix == ".csv":
            pa_csv.write_csv(table, stream)
        else:
            facts = {
                _VERSION_KEY: str(FORMAT_VERSION),
                _CLASSES_KEY: json.dumps(list(class_names)),
                _MODELS_KEY: json.dumps(list(probabilities)),
            }
            pq.write_table(table.replace_schema_metadata(facts), stream)
    return path


def read_prediction_file(
    path: str | Path, models: Sequence[str], attributes: Sequence[str]
) -> tuple[Arrays, tuple[str, ...], Arrays, Arrays]:
    """Read the columns of a file; `Predictions.read`, which also checks their values, is the way to call it.

    Args:
        path: ends in .parquet or .csv.
        models: names that a model may have.
        attributes: names of the columns that may be there or not.

    Returns:
        Columns (as `write_prediction_file` takes them), class names in label order, model to (N, C) probabilities, and
        the attributes that the file has.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Another suffix, a damaged file, another version of the format, a missing column or an empty cell;
            the message begins with the path.
    """
    path, suffix = Path(path), _suffix(path)
    try:
        table = _read_csv(path) if suffix == ".csv" else pq.read_table(path)
        return _arrays(table, models, attributes)
    except (ValueError, pa.ArrowException) as error:
        raise ValueError(f"{path}: {error}") from error


def _suffix(path: str | Path) -> str:
    if (suffix := Path(path).suffix.lower()) not in (".parquet", ".csv"):
        raise ValueError(f"{path} ends in {suffix!r}; predictions are kept as .parquet or .csv")
    return suffix


def _read_csv(path: Path) -> pa.Table:
    types = {**_COLUMNS, "plane": pa.string(), "lesion_area": pa.float64()}  # ids of digits stay text
    with open(path, "rb") as stream:
        return pa_csv.read_csv(stream, convert_options=pa_csv.ConvertOptions(column_types=types))


def _arrays(
    table: pa.Table, models: Sequence[str], attributes: Sequence[str]
) -> tuple[Arrays, tuple[str, ...], Arrays, Arrays]:
    facts = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    if (version := facts.get(_VERSION_KEY, str(FORMAT_VERSION))) != str(FORMAT_VERSION):
        raise ValueError(f"format version {version} is not known; this hf_kdmri reads version {FORMAT_VERSION}")
    if _MODELS_KEY in facts:
        held, names = json.loads(facts[_MODELS_KEY]), json.loads(facts[_CLASSES_KEY])
    else:
        held, names = _names_of(table.column_names, models)
    flat = [f"{model}_{name}" for model in held for name in names]
    if missing := [name for name in (*_COLUMNS, *flat) if name not in table.column_names]:
        raise ValueError(
            f"the column {missing[0]!r} is missing (of {len(missing)} that are); the file has "
            f"{', '.join(table.column_names)}. Write the file with Predictions.write, or add the column."
        )
    for name in (*_COLUMNS, *flat):
        if empty := table[name].null_count:
            raise ValueError(f"the column {name!r} has {empty} empty cells; expected a value in every row")
    columns = {name: _array(table[name]) for name in _COLUMNS}
    probabilities = {model: np.stack([_array(table[f"{model}_{name}"]) for name in names], axis=1) for model in held}
    return (
        columns,
        tuple(names),
        probabilities,
        {name: _array(table[name]) for name in attributes if name in table.column_names},
    )


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    values = column.to_numpy()  # empty numbers become NaN
    # only text without a gap becomes an array of text; what has gaps is refused as it is
    return values.astype(np.str_) if values.dtype == object and not column.null_count else values


def _names_of(columns: Sequence[str], models: Sequence[str]) -> tuple[list[str], list[str]]:
    """Read models and class names off the columns; the first model's columns stand in label order."""
    held = [model for model in models if any(column.startswith(f"{model}_") for column in columns)]
    if not held:
        prefixes = " or ".join(f"{model}_" for model in models)
        raise ValueError(f"no column begins with {prefixes}: there are no probabilities. Name them <model>_<class>.")
    return held, [column.removeprefix(f"{held[0]}_") for column in columns if column.startswith(f"{held[0]}_")]
