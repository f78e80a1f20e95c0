"""The documentation's promises: its snippets run, its links lead somewhere, every page is in the index."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from pathlib import Path
from typing import get_args

import pytest

import fxprune
from fxprune.compiler.options import MethodName, Options
from fxprune.scoring.scorer import scorer_of
from tests.support.marks import ALL, but_slow
from tests.support.settings import within

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
NAMES = {page: page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES}
COMMANDS = "<!-- newcomer: begin -->"  # a page whose snippets stand among commands: tests/whole/test_newcomer.py runs all of it
#: Pages whose snippets take no more than a second.
QUICK = ("coupling", "troubleshooting")
NAMED = re.compile(r"`(fxprune(?:\.\w+)+)(?:\([^`]*\))?`")
PATH = re.compile(r"\b((?:fxprune|tests|benchmarks|docs)/[a-z_\d./-]+\.(?:py|md|svg))\b")
#: Before it may stand what it imports beyond the extra `test`, <!-- needs: ultralytics -->, or that it takes a minute, <!-- slow -->.
SNIPPET = re.compile(r"^(?:<!-- (?:needs: ([\w, ]+)|(slow)) -->\n)?```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def _runs(page: Path) -> bool:
    text = page.read_text("utf-8")
    return COMMANDS not in text and SNIPPET.search(text) is not None


@pytest.mark.parametrize(
    "page", but_slow(filter(_runs, PAGES), quick=[DOCS / f"{name}.md" for name in QUICK]), ids=NAMES.get
)
def test_the_snippets_run_one_after_another(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    within(tmp_path, monkeypatch)
    names, lacking = {"__name__": "snippet"}, set[str]()
    for number, (needs, slow, snippet) in enumerate(SNIPPET.findall(page.read_text("utf-8"))):
        if slow and ALL not in os.environ:
            continue
        if absent := {name for name in re.findall(r"\w+", needs) if importlib.util.find_spec(name) is None}:
            lacking |= absent
            continue
        exec(compile(snippet, f"{page.name}, snippet {number}", "exec", dont_inherit=True), names)
    if lacking:
        pytest.skip(f"all snippets run but those that need {', '.join(sorted(lacking))}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES.get)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", page.read_text("utf-8"))
    assert [link for link in links if not (page.parent / link.partition("#")[0]).exists()] == []


#: A paragraph, an item of a list, or a row of a table.
BLOCK = re.compile(r"\n\s*\n|\n(?=- )|\n(?=\|)")
RECORD = re.compile(r"\]\(\.\./(benchmarks/results/[\w-]+\.md)\)")
FIGURE = re.compile(r"\d+(?:\.\d+)?")


def _unrecorded(text: str) -> list[tuple[str, str]]:
    """Returns the figures with a point that stand in none of the records that are linked beside them, and where they are."""
    found = []
    for block in BLOCK.split(re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        linked = [(ROOT / path).read_text("utf-8") for path in RECORD.findall(block)]
        recorded = {float(figure) for record in linked for figure in FIGURE.findall(record)}
        said = FIGURE.findall(re.sub(r"`[^`]*`|\]\([^)]*\)", "", block))
        found += [(figure, block[:60]) for figure in said if "." in figure and float(figure) not in recorded]
    return found


def test_figures_of_choosing_stand_in_the_records_beside_them() -> None:
    text = (DOCS / "choosing.md").read_text("utf-8")
    assert len(RECORD.findall(text)) > 20 and _unrecorded(text) == []


def test_a_figure_without_a_record_would_be_noticed() -> None:
    link = "([vit](../benchmarks/results/vit.md))"
    text = f"Of 79.44 % 12.34 {link}.\n\n- 79.44\n- `0.123` {link}"
    assert _unrecorded(text) == [("12.34", f"Of 79.44 % 12.34 {link}."[:60]), ("79.44", "- 79.44")]


def test_every_page_is_in_an_index() -> None:
    listed = set()
    for folder in {page.parent for page in PAGES}:
        (tree,) = re.findall(r"```{toctree}\n.*?\n\n(.*?)```", (folder / "index.md").read_text("utf-8"), re.DOTALL)
        listed |= {NAMES[page] for pattern in tree.split() for page in folder.glob(f"{pattern}.md")}
    assert listed == set(NAMES.values()) - {"index"}


def test_every_page_is_linked_where_it_is_listed() -> None:
    """A table of contents is nothing where the pages are read without being built."""
    linked = set()
    for index in (page for page in PAGES if page.name == "index.md"):
        links = re.findall(r"\]\(([\w/.-]+\.md)\)", index.read_text("utf-8"))
        linked |= {NAMES[index.parent / link] for link in links}
    assert linked == set(NAMES.values()) - {"index"}


def _is_text(part: ast.AST) -> bool:
    return isinstance(part, ast.FormattedValue) or (isinstance(part, ast.Constant) and isinstance(part.value, str))


def _said(source: Path) -> list[str]:
    """Returns all texts in a file of source, with gaps where values are put in."""
    texts = []
    for node in ast.walk(ast.parse(source.read_text("utf-8"))):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        texts.append("\0".join(p.value if isinstance(p, ast.Constant) else "" for p in parts if _is_text(p)))
    return texts


def test_messages_are_looked_up_by_their_own_words() -> None:
    rows = re.findall(r"^\| \*(.+?)\* ", (DOCS / "troubleshooting.md").read_text("utf-8"), re.MULTILINE)
    said = [text for source in (ROOT / "fxprune").rglob("*.py") for text in _said(source)]
    assert len(rows) > 15
    assert [row for row in rows if not any(all(part in text for part in row.split("...")) for text in said)] == []


def test_the_guide_says_what_each_method_prefers() -> None:
    """Each row of its table of criteria names methods, and in the last two columns what ``"auto"`` stands for."""
    rows = re.findall(
        r"^\| (`.*) \|$", (DOCS / "guide.md").read_text("utf-8").partition("## Recovery")[0], re.MULTILINE
    )
    said = {name: row.split(" | ")[-2:] for row in rows for name in re.findall(r"`([\w-]+)`", row.partition(" | ")[0])}
    wanted = {}
    for name in get_args(MethodName):
        chosen = Options().resolve(scorer_of(name))
        wanted[name] = [f'`"{chosen.recover}"`' if chosen.recover else "None", str(chosen.min_keep)]
    assert said == wanted
    assert get_args(MethodName)[0] == "variance" == Options().method and "`variance`, the default" in rows[0]


def _exists(dotted: str) -> bool:
    """Returns whether a dotted name is a module's, or that of an attribute of one, or of a class in it."""
    found: object = fxprune
    for done in range(1, len(parts := dotted.split("."))):
        try:
            found = getattr(found, parts[done])
        except AttributeError:
            try:
                found = importlib.import_module(".".join(parts[: done + 1]))
            except ImportError:
                return False
    return True


def test_what_exists() -> None:
    assert _exists("fxprune.Sweep.points") and _exists("fxprune.data.batches.Batches")
    assert not _exists("fxprune.rules") and not _exists("fxprune.solve.solve")


TEXTS = [*PAGES, *ROOT.glob("*.md"), *(ROOT / "tests").glob("*.md"), *(ROOT / "fxprune").rglob("*.py")]


def test_names_and_paths_in_texts_are_of_today() -> None:
    dotted, paths = set(), set()
    for text in TEXTS:
        if text.name == "CHANGELOG.md":
            continue
        dotted |= {(text.name, name) for name in NAMED.findall(text.read_text("utf-8"))}
        paths |= {(text.name, path) for path in PATH.findall(text.read_text("utf-8"))}
    assert len(dotted) > 50 and len(paths) > 10
    assert [(text, name) for text, name in sorted(dotted) if name != "fxprune.NAME" and not _exists(name)] == []
    assert [(text, path) for text, path in sorted(paths) if not (ROOT / path).exists()] == []
