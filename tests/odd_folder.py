"""A folder of everything odd at once: names, sizes, kinds of file."""

import os
import shutil
from pathlib import Path

import numpy as np
from pictures import build_dicom, encode, ramp
from PIL import Image as PILImage

MARKUP = (
    "[red]x[-dr]", "**bold** _it_", "<script>alert(1)", "$x^2$", ":smile:", "=1+1",
    "-rf", "--json", "a;b|c&d", "new\nline", "tab\tx", "esc\x1b[31m", "right\u202eleft", "`code`",
    "图像 一", "e\u0301", " spaced ", "%s%n{0}", "'quote\"", "x" * 200, "dots...", "C:\\x",
)  # fmt: skip


def fill(root: Path, eye: Path) -> list[Path]:
    """Write the files; return those that must each have a row, links included."""
    root.mkdir(parents=True)
    files = []
    for name in MARKUP:
        path = root / f"{name}.png"
        shutil.copy2(eye, path)
        files.append(path)
    undecodable = Path(os.fsdecode(os.fsencode(root) + b"/M\xfcller.png"))
    shutil.copy2(eye, undecodable)
    files.append(undecodable)
    contents = {
        "empty.png": b"",
        "text.png": b"not a picture",
        "cut.png": eye.read_bytes()[:200],
        "page.jpg": b"<html>",
        "archive.zip": b"PK\x03\x04" + b"0" * 40,
        "program": b"\x7fELF" + b"\0" * 60,
        "zeros.dcm": bytes(4096),
        "one-pixel.png": encode(np.zeros((1, 1), np.uint8), "PNG"),
        "thin.png": encode(np.arange(2000, dtype=np.uint16).astype(np.uint8)[None], "PNG"),
        "grey16.png": encode((ramp(np.uint16, 4095)), "PNG"),
        "no-suffix": eye.read_bytes(),
        "sound.dcm": build_dicom(ramp(np.uint16, 4000)),
        "notes.txt": b"hello",
        "deep/er/im.png": eye.read_bytes(),
    }
    for name, data in contents.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        files.append(path)
    for name, target in {"broken": "nowhere", "loop": "loop", "up": ".."}.items():
        (root / name).symlink_to(target)
        files.append(root / name)
    os.mkfifo(root / "pipe.png")
    files.append(root / "pipe.png")
    wide = PILImage.new("L", (1, 1)).resize((3000, 2))
    wide.putpixel((5, 1), 255)
    wide.save(root / "wide.png")
    files.append(root / "wide.png")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "@eaDir").mkdir()
    (root / "@eaDir" / "thumb.jpg").write_bytes(b"x")
    return files
