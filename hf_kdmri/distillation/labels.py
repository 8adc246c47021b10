"""Match the teacher's logits to the student's by class name."""

from __future__ import annotations

from collections.abc import Sequence


def teacher_column_order(student_labels: Sequence[str], teacher_labels: Sequence[str]) -> list[int]:
    """Where each of the student's classes stands among the teacher's logits.

    Three orders of the same classes are in use for this data, so position alone proves nothing.

    Args:
        student_labels: class names in the order of the student's logits.
        teacher_labels: class names in the order of the teacher's logits.

    Returns:
        Indices such that `teacher_logits[:, indices]` is in the student's order.

    Raises:
        ValueError: the two do not name the same classes.

    Example:
        >>> teacher_column_order(["meningioma", "glioma"], ["glioma", "meningioma"])
        [1, 0]
    """
    if sorted(student_labels) != sorted(teacher_labels):
        raise ValueError(
            f"the teacher's classes {list(teacher_labels)} are not the student's {list(student_labels)}; order may "
            "differ, names may not: fine-tune the teacher on this data set, or rename its id2label in config.json"
        )
    return [list(teacher_labels).index(label) for label in student_labels]
