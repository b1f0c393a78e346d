"""Extra columns of a manifest: looked up by key, without the columns used internally."""

from pathlib import Path

import pytest

from core.assessment.model_comparison import read_subgroups
from core.data.datasets import read_dataset
from core.data.manifest import read_columns
from core.errors import DataError
from core.exploring.gallery_table import read_manifest


def test_columns_follow_the_keys(tmp_path: Path) -> None:
    lines = "file,split,label,group,age,empty\nb.png,test,x,7,70,\na.png,test,y,8,,\n"
    (tmp_path / "manifest.csv").write_text(lines, encoding="utf-8")
    keys = ("a.png", "b.png", "c.png")
    assert read_columns(tmp_path, keys) == {"age": ("", "70", "")}
    assert read_columns(tmp_path, keys, with_patients=True) == {
        "age": ("", "70", ""),
        "group": ("8", "7", ""),
    }
    assert read_columns(tmp_path / "none", keys) == {}
    (tmp_path / "manifest.csv").write_bytes(b"file,age\n\xff,1\n")
    with pytest.raises(DataError, match="is not a UTF-8 CSV table"):
        read_columns(tmp_path, keys)


def test_every_reader_knows_an_image_by_the_key_of_the_data_set(tmp_path: Path) -> None:
    lines = ["file,split,label,site"]
    for number in range(12):
        (tmp_path / f"{number}.png").touch()
        name = f"./{number}.png" if number % 2 else f" {number}.png"
        lines.append(f"{name},,{('normal', 'disease')[number % 2]},{'ab'[number % 3 > 0]}")
    (tmp_path / "manifest.csv").write_text("\n".join(lines), encoding="utf-8")
    keys = [record.key for record in read_dataset(tmp_path).records]
    expected = ["ab"[int(key.removesuffix(".png")) % 3 > 0] for key in keys]
    assert list(read_columns(tmp_path, keys)["site"]) == expected
    assert list(read_subgroups(tmp_path, keys)["site"].values()) == expected
    assert read_manifest(tmp_path, keys)[0]["site"].tolist() == expected
