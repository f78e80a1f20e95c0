"""The command line called in a folder with models and images of the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from torch import nn

from fxprune.cli import main
from fxprune.cli.models import Made
from fxprune.cli.specs import ModelSpec

MODELS = """
import torch
from torch import nn

torch.manual_seed(0)


def net(width=8, classes=3):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
                         nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, classes))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 16), nn.Linear(16, 2)

    def forward(self, first, second):
        return self.b(self.a(first + second).relu())


def loader():
    return [(torch.randn(4, 3, 8, 8), torch.randint(0, 3, (4,))) for _ in range(2)]


def generator():
    yield torch.randn(4, 3, 8, 8)


def number():
    return 3


def fails():
    raise ZeroDivisionError("by zero")


batches = [torch.randn(4, 3, 8, 8)]


class Odd(nn.Module):
    def forward(self, x):
        return x * (1 + torch.rand(())) if self.training else x


def odd():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), Odd(), nn.Flatten(), nn.Linear(128, 3))
"""


def run(*argv: str) -> Result:
    return CliRunner().invoke(main, argv)


def done(*argv: str) -> Result:
    found = run(*argv)
    assert found.exit_code == 0, found.output
    return found


def listing(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "__pycache__" not in path.parts)


def complaint(*argv: str) -> str:
    """Returns what a failing command says: one line, and nothing is written."""
    return _failing(1, argv)


def misuse(*argv: str) -> str:
    """Returns what is said to a wrong word on the command line, which is found before any stage: one line, or click's usage."""
    return _failing(2, argv)


def _failing(code: int, argv: tuple[str, ...]) -> str:
    before = listing(Path.cwd())
    found = run(*argv)
    assert found.exit_code == code, found.output
    assert found.stdout == "" and listing(Path.cwd()) == before
    if code == 2:
        assert not re.search(r"^fxprune: (check|compiling)", found.stderr, re.MULTILINE), found.stderr
        if found.stderr.startswith("Usage: fxprune"):
            return found.stderr.partition("Error: ")[2].rstrip()
    errors = [line for line in found.stderr.splitlines() if not line.startswith("fxprune: ") or "error" in line[:15]]
    assert len(errors) == 1 and errors[0].startswith("fxprune: error: "), found.stderr
    return errors[0]


TINY = ("mine:net", "--calib", "mine:loader")


def made(model: nn.Module, library: str = "", name: str = "") -> Made:
    return Made(model.eval(), ModelSpec(spec=f"{library}:{name}"), library, name)


class Bomb:
    """Leaves a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)
