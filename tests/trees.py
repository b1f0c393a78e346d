"""Random data folders for property tests and fuzzing: usual words in unusual places."""

from pathlib import Path

from hypothesis import strategies as st

WORDS = (
    *("normal", "Normal", "disease", "flu", "0", "1", "benign", "malignant", "non-covid", "covid"),
    *("train", "Training", "test", "Tst", "val", "valid", "fold1", "fold2", "train_images"),
    *("images", "masks", "Masks", "labels", "@eaDir", ".thumbnails", "lost+found", "p1", "p2"),
    *("patient_3", "2019", "a, b", "[red]", "=1", " x ", "ＮＯＲＭＡＬ", "wrapper"),
)
FILES = (
    *("im1.png", "im2.png", "im1_mask.png", "IM0001", "person1_2.jpeg", "person1_3.jpeg", "x.dcm"),
    *(
        "notes.txt",
        "features.npz",
        "index.csv",
        "manifest.csv",
        ".DS_Store",
        "Thumbs.db",
        "a,b.png",
    ),
    *("\udcfc.png", "new\nline.png", "<b>.png", "x.zip", "00000001_000.png", "00000001_001.png"),
)
_PATHS = st.lists(st.sampled_from(WORDS), max_size=4).flatmap(
    lambda folders: st.sampled_from(FILES).map(lambda file: (*folders, file))
)
TREES = st.lists(_PATHS, min_size=1, max_size=30, unique=True)
_CONTENT = {
    "manifest.csv": b"file,label,split\nim1.png,normal,train\n",
    "index.csv": b"a;b\n",
    "features.npz": b"PK\x05\x06" + b"\0" * 18,
}


def build(root: Path, tree: list[tuple[str, ...]]) -> None:
    """Write a tree of tiny files; a path through a file of that name is left out."""
    for parts in tree:
        path = root.joinpath(*parts)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_CONTENT.get(parts[-1], b"x"))
        except OSError:
            continue
