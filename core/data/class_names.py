"""Decide which of two class names is the disease, or say that the names do not tell.

A wrong guess would turn every answer round, so only a reason that leaves no second reading counts:
a person or the model said so, one name says that nothing was found, one is the other's negation, or
benign stands against malignant. Numbers are never guessed: in public data sets 0 is as often the
disease as 1.
"""

import re
import unicodedata
from collections.abc import Collection
from pathlib import Path

from core.data.decisions import Decision, join
from core.data.options import TrainingData


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NORMAL = _words(
    "normal normals healthy negative control controls none no nofinding nofindings uninfected "
    "unaffected unremarkable undiseased gesund sain sano sana "
    "正常 健康 阴性 对照 无病变 未见异常"
)
_DISEASE = _words(
    "disease diseased abnormal abnormality positive sick pathology pathological 异常 阳性 患病"
)
_MALIGNANT = _words("malignant malignancy cancer cancerous carcinoma 恶性")
_BENIGN = frozenset(["benign", "良性"])
_FINDINGS = _DISEASE | _words(
    "finding findings lesion lesions abnormalities evidence tumor tumour nodule nodules"
)
_TUMOURS = re.compile(r"(carcinoma|lymphoma|melanoma|sarcoma|glioma|blastoma|cancer|hodgkin)s?$")
_WISHED = _words("responder responders survivor survivors diagnostic viable normal healthy")
_FILLERS = _words(
    "case cases image images img imgs patient patients class group scan scans eye eyes lung lungs "
    "chest breast xray xrays cxr ct mri ray x the with a of subject subjects sample samples"
)
_NEGATIONS = frozenset(["no", "non", "not", "without", "非", "无"])
_CJK_NEGATION = re.compile(r"^(非|无)(?=.)")


def decide_disease(
    names: Collection[str], *, said: str | None, model: TrainingData | None, root: Path
) -> tuple[str | None, list[Decision]]:
    """Decide which class is the disease.

    Args:
        names: exactly two.
        said: the class a person named, one of ``names``; it always wins.
        model: what the model that the data is for was trained on; its disease counts if the data
            have a class of that name. A number says nothing about other data than the model's own.
        root: of the data.

    Returns:
        The disease, or None if it must be asked; what was decided and why.
    """
    one, two = sorted(names)
    if said is not None:
        normal = two if said == one else one
        found = [_decide("disease.said", said, normal)]
        guess = _read_names(one, two)
        if guess is not None and guess[0] != said:
            found.append(_decide("disease.against", said, normal))
        return said, found
    if model is not None and model.disease_class in names:
        disease = model.disease_class
        if model.is_at(root) or not is_number(disease):
            return disease, [_decide("disease.model", disease, two if disease == one else one)]
    guess = _read_names(one, two)
    if guess is None:
        return None, [Decision("disease.ask", {"found": join(names)})]
    disease, code = guess
    return disease, [_decide(code, disease, two if disease == one else one)]


def is_number(name: str) -> bool:
    """Whether a class name is only a number, whatever word goes with it ("1", "class_0")."""
    tokens = [token for token in _split(name) if token not in _FILLERS]
    return all(token.isdigit() for token in tokens)


def _decide(code: str, disease: str, normal: str) -> Decision:
    return Decision(code, {"disease": disease, "normal": normal})


def _read_names(one: str, two: str) -> tuple[str, str] | None:
    """The disease and the code of the reason; None if there is no reading, or more than one."""
    found = {
        (disease, code)
        for disease, normal in ((one, two), (two, one))
        if (code := _read_pair(disease, normal))
    }
    if len({disease for disease, _code in found}) != 1:
        return None
    return min(found, key=lambda pair: pair[1] == "disease.word")


def _read_pair(disease: str, normal: str) -> str | None:
    """Why the second name would be the class without the disease; None if nothing says so."""
    if is_number(disease) or is_number(normal):
        return None
    with_it, without = _strip(disease), _strip(normal)
    if _is_negated(with_it) or _says_nothing(with_it):
        return None  # "non-covid" against "negative": the names do not settle it
    if without and without[0] in _NEGATIONS:
        rest = without[1:]
        if _names_same(rest, with_it) and not _is_no_finding(rest):
            return "disease.opposite"
        return "disease.normal" if set(rest) and set(rest) <= _FINDINGS else None
    if set(without) - set(with_it) == {"negative"} and set(with_it) - set(without) == {"positive"}:
        return "disease.opposite"
    if _says_nothing(without):
        return "disease.normal"
    if set(without) & _BENIGN and set(with_it) & _MALIGNANT and not set(without) & _MALIGNANT:
        return "disease.malignant"
    is_generic = len(with_it) == 1 and with_it[0] in _DISEASE
    return "disease.word" if is_generic and not set(without) & _DISEASE else None


def _says_nothing(tokens: list[str]) -> bool:
    """Whether a whole name says that nothing was found; "none" alone, but not "no" of something."""
    return len(tokens) == 1 and tokens[0] in _NORMAL


def _is_negated(tokens: list[str]) -> bool:
    """Whether a name negates something. "Non-small-cell carcinoma" negates no finding."""
    is_negation = len(tokens) > 1 and tokens[0] in _NEGATIONS
    if is_negation and len(tokens) > 2 and _TUMOURS.search(tokens[-1]):
        return False
    # "not normal" is no class without a disease
    return is_negation and not set(tokens[1:]) <= _NORMAL


def _is_no_finding(rest: list[str]) -> bool:
    """Whether "non" before these words negates no finding: non-Hodgkin, non-responder."""
    is_tumour = any(_TUMOURS.search(token) for token in rest) and rest != ["cancer"]
    return is_tumour or rest[-1] in _WISHED


def _names_same(rest: list[str], other: list[str]) -> bool:
    """Whether what is negated is the other class: "covid" and "covid 19" are."""
    a, b = "".join(rest), "".join(other)
    return bool(a) and bool(b) and (a == b or (len(a) > 1 and b.startswith(a)))


def _split(name: str) -> list[str]:
    """Words of a name in lower case: at separators, case changes and numbers."""
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    return [token for token in re.split(r"[\W_]+|(?<=\D)(?=\d)", text.casefold()) if token]


def _strip(name: str) -> list[str]:
    """Words without fillers, and without the number in front of "0_normal"."""
    tokens = _split(name)
    if len(tokens) == 1:
        tokens = _CJK_NEGATION.sub(r"\1 ", tokens[0]).split()
    kept = [token for token in tokens if token not in _FILLERS] or tokens
    return kept[1:] if len(kept) > 1 and kept[0].isdigit() else kept
