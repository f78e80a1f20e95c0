"""`fxprune explain`: as text, as data, as a graph."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cli import complaint, done, misuse


def test_explain_as_text_json_and_graph(here: Path) -> None:
    base = ("explain", "mine:net", "--calib", "random:2x3x8x8")
    found = done(*base)
    assert found.stderr == ""  # noise does no harm here
    text = found.stdout
    assert "2 groups, 16 units" in text and "frozen, and why" in text and "7.weight[0]" in text
    data = json.loads(done(*base, "--json").stdout)
    assert [(g["name"], g["units"], g["makers"], g["readers"]) for g in data["groups"]] == [
        ("0", 8, ["0", "1"], ["3"]),
        ("3", 8, ["3"], ["7"]),
    ]
    assert {"tensor": "7.bias", "axis": 0, "coordinates": 3, "size": 3} in [
        {k: row[k] for k in ("tensor", "axis", "coordinates", "size")} for row in data["frozen"]
    ]
    dot = done(*base, "--dot").stdout
    assert dot.startswith("digraph fxprune {") and '"layer 3" -> "group 3";' in dot and '"group 3" -> "layer 7";' in dot
    one = done(*base, "3").stdout
    assert "3.weight axis 0 (8)" in one and "read by 7" in one and "0.weight axis 0" not in one
    assert [g["name"] for g in json.loads(done(*base, "7", "--json").stdout)["groups"]] == ["3"]
    assert "did you mean 7" in complaint(*base, "77")
    assert "'--json' and '--dot' exclude each other" in misuse(*base, "--json", "--dot")


def test_explain_needs_no_data_where_the_library_says_what_a_model_takes() -> None:
    data = json.loads(done("explain", "torchvision:squeezenet1_1", "--image-size", "64", "--json", "--meta").stdout)
    assert "features.3.squeeze" in [group["name"] for group in data["groups"]]
    assert "say it with --calib" in complaint("explain", "mine:net")


def test_explain_says_what_the_class_holds(here: Path) -> None:
    base = ("explain", "mine:net", "--calib", "random:2x3x8x8", "--json")
    plain, own = (json.loads(done(*base, "--form", form).stdout) for form in ("graph", "module"))
    assert plain["tied"] == plain["held"] == [] and own["groups"] == plain["groups"]
    assert {"tied", "held"} <= own.keys()
    assert "'graph', 'module'; did you mean module?" in misuse(*base, "--form", "modul")
    assert "did you mean block?" in misuse(*base, "--units", "blok")


def test_explain_says_what_each_pattern_takes(here: Path) -> None:
    base = ("explain", "mine:net", "--calib", "random:2x3x8x8", "--json")
    found = json.loads(done(*base, "--ratio", "3=0.5", "--ratio", "nowhere=0.2").stdout)
    assert [(row["pattern"], row["groups"]) for row in found["patterns"]] == [("3", ["3"]), ("nowhere", [])]
    assert "expected SHARE or PATTERN=SHARE" in misuse(*base, "--ratio", "half")
