"""Reading, splitting and generating brain MRI slices; needs neither torch nor timm nor transformers."""

from __future__ import annotations

from hf_kdmri.data.archives import (
    DataFolderError,
    SliceEntry,
    SliceReader,
    find_slices,
    find_slices_in_zips,
    read_slices,
)
from hf_kdmri.data.mat_file import (
    LABEL_NAMES,
    Slice,
    SliceFileError,
    read_label_and_pid,
    read_slice,
)
from hf_kdmri.data.phantom import write_phantom_archives
from hf_kdmri.data.pixels import mask_bounding_box, raw_to_uint16, window_to_uint8
from hf_kdmri.data.planes import PLANES, slice_plane
from hf_kdmri.data.splits import (
    assign_splits,
    group_folds,
    group_parts,
    patient_group_of,
    published_patients,
    split_by_group,
)

__all__ = [
    "LABEL_NAMES",
    "PLANES",
    "DataFolderError",
    "Slice",
    "SliceEntry",
    "SliceFileError",
    "SliceReader",
    "assign_splits",
    "find_slices",
    "find_slices_in_zips",
    "group_folds",
    "group_parts",
    "mask_bounding_box",
    "patient_group_of",
    "published_patients",
    "raw_to_uint16",
    "read_label_and_pid",
    "read_slice",
    "read_slices",
    "slice_plane",
    "split_by_group",
    "window_to_uint8",
    "write_phantom_archives",
]
