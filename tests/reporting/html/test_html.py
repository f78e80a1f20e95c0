"""The page of a report: what it holds, what it escapes, and that it needs nothing but itself."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import re
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from torch import nn

import fxprune
from fxprune._base.errors import FxpruneError, MissingExtraError
from fxprune.reporting.html import page, write_html
from fxprune.reporting.html.rows import Branch, group_views, tree
from fxprune.results.attached import report
from fxprune.results.fidelity import Fidelity
from fxprune.results.record import FrozenRow, GroupRow, LayerRow, Report
from tests.support.reports import HOSTILE, a_summary, full_report, large_report, make_report

VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Reads a page: its elements, its text, and whether every element is closed."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def text() -> str:
    return page(full_report())


def test_it_is_a_whole_page_with_headings_in_order(text: str) -> None:
    found = Page(text)
    assert text.startswith("<!doctype html>") and found.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in found.elements if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [attributes["id"] for _, attributes in found.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {str(link["href"])[1:] for link in found.all("a")}
    assert targets <= set(ids) and "main" in targets and {"g1"} <= targets


@pytest.mark.parametrize(
    ("fidelity", "seal", "sign"),
    [
        (Fidelity(error=0.1, agreement=0.99, samples=64), "good", "✓"),
        (Fidelity(error=0.1, agreement=0.9, samples=64), "open", "~"),
        (Fidelity(error=0.1, agreement=0.5, samples=64, batches=2, data="held out", advice=("fine-tune",)), "bad", "✗"),
        (Fidelity(why="not comparable: <boxes>"), "open", "?"),
    ],
)
def test_the_fidelity_has_a_seal_of_its_own(fidelity: Fidelity, seal: str, sign: str) -> None:
    found = Page(page(full_report(fidelity=fidelity)))
    seals = [each["class"] for each in found.all("p") if "seal" in str(each.get("class"))]
    words = " ".join("".join(found.text).split())
    assert seals == [f"seal seal-{seal}", "seal seal-good"] and f"{sign}Fidelity: {fidelity}" in words
    assert "Good, or fair, is an agreement of at least 95 % (80 %)" in words
    assert ("64 samples in 2 batches held out from recovery" in words) == (fidelity.batches == 2)


def test_an_old_report_has_no_seal_of_fidelity(text: str) -> None:
    assert text.count('class="seal ') == 1 and "Fidelity" not in text


def test_what_a_reader_asks_first_comes_first() -> None:
    text = page(full_report(fidelity=Fidelity(error=0.1, agreement=0.99, samples=64)))
    ids = re.findall(r'<h2 id="(\w+)">', text)
    assert ids == [
        *("faster", "fidelity", "certificate", "map", "coupling"),
        *("scores", "costs", "frozen", "collapsed", "skipped", "made"),
    ]
    tiles = re.findall(r'<li class="tile"><h3>(.*?)</h3>', text)
    assert tiles == ["Parameters", "MACs per sample", "Milliseconds a call", "Bytes"]
    assert "speed-up 2.01 x" in text and "No time was measured" not in text
    assert "No time was measured" in page(make_report())


def test_every_number_of_the_report_is_there(text: str) -> None:
    found = full_report()
    words = " ".join(Page(text).text)
    numbers = [*found.params, *found.macs, *found.bytes, found.units_removed, found.dropped]
    numbers += [n for row in found.groups for n in (row.before, row.after)]
    numbers += [n for row in found.layers for n in (*row.params, *row.macs)]
    numbers += [row.coordinates for row in found.frozen]
    assert found.scores is not None
    numbers += [n for n in (*found.scores.kept, *found.scores.removed, *found.scores.astray) if n]
    for number in numbers:
        assert re.search(rf"(?<![\d,]){number:,}(?![\d,])", words), number
    for piece in (
        "3.2e-06",
        "1e-04",
        "float32",
        "1.50",
        "0.25",
        "12.5",
        "6.21",
        "6.07",
        "6.25 ms, met",
        "1.5e-05",
        "48.6 %",
        "variance",
        "the result",
        "an input",
        "layer4.1",
        "conv1.weight: no bias takes its shift",
        "a note",
    ):
        assert piece in words, piece


def test_every_chart_has_a_name_a_description_and_a_table(text: str) -> None:
    found = Page(text)
    charts = [s for s in found.all("svg") if "aria-labelledby" in s]
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert charts and all(s["role"] == "img" for s in charts)
    assert all(s[key] in ids for s in charts for key in ("aria-labelledby", "aria-describedby"))
    names = {str(s["aria-labelledby"]).split("-wide")[0] for s in charts if "-wide" in str(s["aria-labelledby"])}
    assert names == {"distribution", "strips", "params", "macs", "seconds"}
    assert len(found.all("caption")) == len(found.all("table")) == 4 + 2  # the costs by layer share one, two reasons
    assert all(cell["scope"] in ("col", "row") for cell in found.all("th"))


def test_nothing_is_loaded_and_the_policy_allows_its_own_style_and_script_alone(text: str) -> None:
    found = Page(text)
    assert "http" not in text.replace("http-equiv", "") and "url(" not in text.replace("url(#", "")
    assert not [tag for tag, _ in found.elements if tag in ("link", "img", "iframe", "object", "embed", "base")]
    assert not [a for _, a in found.elements if {"src", "style", "srcset", "data"} & a.keys()]
    assert not [a for _, a in found.elements if any(key.startswith("on") for key in a)]
    policy = next(str(m["content"]) for m in found.all("meta") if m.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ") and "unsafe" not in policy
    for tag in ("style", "script"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_hostile_names_are_text() -> None:
    names = (HOSTILE, '" onclick="x', "a&b;{{ 191*7 }}", "$x^2$", "層.ö")
    found = full_report(
        method=HOSTILE,
        groups=tuple(GroupRow(name, name, (name, f"{name}.1"), 9, 4, 1) for name in names),
        layers=tuple(LayerRow(name, (9, 4), (7, 3)) for name in names),
        frozen=tuple(FrozenRow(name, 0, 1, name) for name in names),
        scores=a_summary(groups=tuple(dataclasses.replace(a_summary().groups[0], name=n) for n in names)),
        collapsed=names,
        skipped=names,
        notes=names,
        seconds=dict.fromkeys(names, 1.0),
        dtype=HOSTILE,
    )
    text = page(found)
    read = Page(text)
    assert text.count("<script") == 1 and HOSTILE not in text
    assert not [a for _, a in read.elements if any(key.startswith("on") for key in a)]
    words = " ".join(read.text)
    assert all(name in words for name in names) and "1337" not in words


def test_a_report_with_nothing_in_it() -> None:
    text = page(Report(params=(0, 0), macs=(0, 0), bytes=(0, 0), method="random"))
    found = Page(text)
    assert "not compared" in " ".join(found.text)
    assert not [s for s in found.all("svg") if "aria-labelledby" in s] and not found.all("form")


@pytest.mark.slow
def test_the_order_in_which_versions_were_noted_does_not_matter() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    found = report(fxprune.compile(model, [torch.randn(4, 4)], 0.8, method="l1", progress=False))
    versions = dict(reversed(found.plan.versions.items()))  # a plan that was read back has them sorted
    assert page(found) == page(dataclasses.replace(found, plan=dataclasses.replace(found.plan, versions=versions)))


def test_a_report_of_format_1_has_a_page() -> None:
    data = make_report().to_dict() | {"schema": 1}
    data["groups"] = [row[:5] for row in data["groups"]]
    for key in ("layers", "scores", "latency", "doubt", "compared", "recover", "form", "shifts", "fidelity"):
        data.pop(key, None)
    words = " ".join(Page(page(Report.from_dict(data))).text)
    assert "layer1.0.conv2" in words and "Read by" not in words


@pytest.mark.parametrize(
    ("changes", "state"), [({"verified": None}, "open"), ({"verified": False}, "bad"), ({}, "good")]
)
def test_the_certificate_has_a_seal(changes: dict[str, Any], state: str) -> None:
    found = Page(page(full_report(**changes)))
    assert [p["class"] for p in found.all("p") if "seal" in str(p.get("class"))] == [f"seal seal-{state}"]


def test_what_grows_says_by_how_much() -> None:
    words = " ".join(Page(page(make_report(params=(10, 20), macs=(0, 5), bytes=(8, 4), groups=()))).text)
    assert "2.00 x as much" in words and "2.00 x smaller" in words


def test_the_user_s_settings_of_matplotlib_do_not_matter() -> None:
    found = make_report(frozen=(), seconds={})
    expected = page(found)
    with mpl.rc_context({"text.usetex": True, "axes.facecolor": "red", "axes.grid": True, "xtick.top": True}):
        assert page(found) == expected


@pytest.mark.slow
@pytest.mark.parametrize("count", [16, 60, 100, 400])
def test_a_large_model_stays_small(count: int) -> None:
    text = page(large_report(count))
    assert len(text.encode()) < 300_000
    found = Page(text)
    blocks = [a for a in found.all("a") if str(a.get("class")).startswith("level-")]
    names = [row.name for row in large_report(count).groups]
    assert sorted(str(a["aria-label"]).partition(": ")[0] for a in blocks) == sorted(names)
    groups = {a["id"] for a in found.all("details") if a["class"] == "group"}
    assert len({a["href"] for a in blocks}) == count and {str(a["href"])[1:] for a in blocks} == groups


def test_groups_are_found_by_the_modules_they_lie_in() -> None:
    names = [f"body.layers.{i}.{part}" for i in range(8) for part in ("up", "down")] + ["head"]
    found = tree(group_views([GroupRow(name, "channel", (name,), 4, 2, 1) for name in names], None))
    assert [p.label if isinstance(p, Branch) else p.row.name for p in found.parts] == ["body.layers", "head"]
    assert found.count == 17 and [part.count for part in found.parts[0].parts] == [2] * 8


def test_a_name_of_a_thousand_parts_is_no_tree_as_deep() -> None:
    names = ["a." * 3000 + str(i) for i in range(13)]
    found = tree(group_views([GroupRow(name, "channel", (name,), 4, 2, 1) for name in names], None))
    assert found.count == 13


@pytest.mark.slow
def test_the_file_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "report.html"
    write_html(full_report(), target)
    assert target.read_text(encoding="utf-8") == page(full_report())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fxprune._base.files.os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_html(full_report(method="l2"), target)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    assert "Pruned by <em>variance" in target.read_text(encoding="utf-8")


@pytest.mark.parametrize("package", ["matplotlib", "jinja2"])
def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fxprune\[report\]'"):
        page(full_report())


def test_only_pruned_models_have_a_page() -> None:
    with pytest.raises(FxpruneError, match="got Linear"):
        page(nn.Linear(2, 2))
