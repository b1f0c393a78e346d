"""The words by which folders and files of a data set are known.

Names are compared without case, separators and the filler words that data sets add ("train_images",
"Training Set", "TEST-data" are split names).
"""

import re
import unicodedata


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SPLITS = {
    **dict.fromkeys(("train", "training", "trn", "trainset", "训练", "训练集"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset", "验证", "验证集"), "val"),
    **dict.fromkeys(("test", "testing", "tst", "testset", "holdout", "测试", "测试集"), "test"),
}
_EXACT_SPLITS = frozenset({"train", "val", "test"})
_FILLERS = _words(
    "image images img imgs data dataset set split folder samples photos scans new all"
)
_FOLD = re.compile(r"(?i)^(?:cv|fold|k[-_ ]?fold|split|part)[-_ ]?(\d{1,2})$")
_MASKS = _words(
    "mask masks segmentation segmentations segmented seg segs annotation annotations annotated gt "
    "groundtruth label labels contour contours roi rois lesionmask lesionmasks maskimages"
)
_CONTAINERS = _words(
    "image images img imgs picture pictures photo photos scan scans dicom dicoms dcm png pngs jpg "
    "jpgs jpeg jpegs original originals raw data x2 preprocessed cropped resized"
)
_SYSTEM_FOLDERS = _words(
    "@eadir @recycle @recently-snapshot @tmp #recycle #snapshot __macosx lost+found $recycle.bin "
    "recycler recycled __pycache__ thumbnails thumbs _vti_cnf aquota.user"
) | {"system volume information", "found.000"}
_SYSTEM_FILES = frozenset(
    {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r", "dicomdir", "synofile_thumb"}
)
_OTHER_SUFFIXES = _words(
    ".csv .tsv .txt .json .jsonl .xml .yaml .yml .toml .md .rst .html .htm .pdf .doc .docx .xls "
    ".xlsx .ods .ppt .pptx .zip .tar .7z .rar .npz .npy .h5 .hdf5 .pkl .pickle .pt .pth .parquet "
    ".feather .mat .py .ipynb .r .m .sh .bat .ini .cfg .log .db .sqlite .lnk .url .license"
)
_MASK_FILE = re.compile(
    r"(?i)^(?P<base>.*[^\s_.-])[\s_.-]*[_\s.-](?:mask|masks|seg|segmentation|label|labels|annotated|"
    r"annotation|gt|groundtruth|ground_truth|contour|roi)(?:[\s_-]?\d{1,2})?$"
)


def find_split(name: str) -> str | None:
    """The split that a folder's name stands for; None if it is no word for one."""
    words = [word for word in _split(name) if word not in _FILLERS and not word.isdigit()]
    return _SPLITS.get(words[0]) if len(words) == 1 else _SPLITS.get("".join(words))


def is_exact_split(name: str) -> bool:
    """Whether a folder is called exactly train, val or test."""
    return name.casefold() in _EXACT_SPLITS


def find_fold(name: str) -> int | None:
    """The number of a cross-validation fold; None if the name is of none."""
    found = _FOLD.match(name.strip())
    return int(found[1]) if found else None


def is_mask_folder(name: str) -> bool:
    """Whether a folder's name says that masks lie in it."""
    words = [word for word in _split(name) if word not in _FILLERS]
    return bool(words) and ("".join(words) in _MASKS or (len(words) == 1 and words[0] in _MASKS))


def is_container(name: str) -> bool:
    """Whether a folder's name says only that images lie in it."""
    words = [word for word in _split(name) if not word.isdigit()]
    return bool(words) and all(word in _CONTAINERS for word in words)


def is_system_folder(name: str) -> bool:
    """Whether a folder is hidden, or made by an operating system or a network drive."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def is_system_file(name: str) -> bool:
    """Whether a file is hidden or made by an operating system."""
    return name.startswith((".", "~$")) or name.casefold() in _SYSTEM_FILES


def is_other_file(suffix: str) -> bool:
    """Whether a file's suffix is of a table, a text, a document, an archive or a program."""
    return suffix.casefold() in _OTHER_SUFFIXES


def find_mask_base(stem: str) -> str | None:
    """The stem of the image that a file named like a mask belongs to; None for other names."""
    found = _MASK_FILE.match(stem)
    return found["base"] if found else None


def _split(name: str) -> list[str]:
    text = unicodedata.normalize("NFKC", name)
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).casefold()
    return [word for word in re.split(r"[\W_]+|(?<=[^\W\d_])(?=\d)", text) if word]
