"""Decide which of two class names is the disease.

Owns the words that indicate it, and the errors if they do not.
"""

import re

from core.errors import DataError

_NORMAL = re.compile(
    r"(?i)^(normal|healthy|negative|control|controls|no|none|0)$|^(no|non|not)[_ -]"
)
_DISEASE = re.compile(r"(?i)^(disease|diseased|abnormal|positive|1|pneumonia|lesion|sick)$")


def order_classes(
    names: set[str], disease_class: str | None, *, model_disease: str | None = None
) -> tuple[tuple[str, ...], int]:
    """Put two class names in label order.

    Args:
        names: of all classes found.
        disease_class: the positive class, if the names do not tell.
        model_disease: that of the model the data is for; it takes precedence over the names.

    Returns:
        The names, normal first, and the index of disease (always 1).

    Raises:
        DataError: there are not two classes, no such class, or the names do not tell.
    """
    listed = ", ".join(sorted(names))
    if len(names) != 2:
        raise DataError(
            f"expected exactly two classes, found {len(names)}: {listed}. Sort the images into two "
            "class folders, for example normal and disease.",
            code="data.classes",
            params={"found": listed},
        )
    if disease_class is not None and disease_class not in names:
        raise DataError(
            f"--disease-class {disease_class!r} is not one of the classes: {listed}.",
            code="data.disease_class",
            params={"found": listed},
        )
    known = model_disease if model_disease in names else None
    chosen = disease_class or known or _guess_disease(names)
    if chosen is None:
        raise DataError(
            f"which of the classes {listed} is disease cannot be told from their names; pass "
            "--disease-class NAME.",
            code="data.disease_class",
            params={"found": listed},
        )
    (normal,) = names - {chosen}
    return (normal, chosen), 1


def _guess_disease(names: set[str]) -> str | None:
    normal = [name for name in names if _NORMAL.search(name)]
    disease = [name for name in names if _DISEASE.search(name)]
    if len(normal) == 1 and normal != disease:
        (other,) = names - set(normal)
        return other
    return disease[0] if len(disease) == 1 and not normal else None
