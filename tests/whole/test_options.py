"""Every option on plain models: torchvision's own, of few blocks and on small images, each result verified and within its budget."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.models.vision_transformer import VisionTransformer

import fxprune
from fxprune import Budget
from fxprune.compiler.options import Allocation, MethodName, Options, RecoveryOption, UnitKind
from tests.support.marks import but_slow
from tests.support.weights import fingerprint, randomise

MODELS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5),
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=32, width_per_group=4),
    "mobilenet": lambda: MobileNetV2(num_classes=5, width_mult=0.25),
    "vit": lambda: VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5),
}

#: What each option is set to, beside the defaults; ``budget`` is one of them here.
SETTINGS: dict[str, list[Any]] = {
    "budget": [0.6, Budget(params=0.6), Budget(macs=0.6), Budget(params=0.7, macs=0.7), 1.0],
    "ratios": [0.3, {"*": 0.3, "default": 0.1}],
    "method": list(get_args(MethodName)),
    "allocation": list(get_args(Allocation)),
    "basis": [],  # refused on most of these: see tests/rotation
    "recover": [None, *get_args(RecoveryOption)],
    "units": [*get_args(UnitKind), get_args(UnitKind)],
    "ignore": ["*1*", ("*", "*1*")],
    "round_to": [4, 8],
    "min_keep": [0, 3],
    "ridge": [1.0, "auto"],
    "holdout": [0, 0.5],
    "allow_bias": [True],
    "loss": [lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)],
    "forward_args": [lambda batch: ((batch[0],), {}, batch[1])],
    "dynamic_shapes": [[{0: torch.export.Dim.AUTO}]],
    "form": ["module"],
    "also": [[lambda model, images: model.forward(images)]],
    "uniform": [True],
    "steps": [2],
    "strict": [True],
    "verify": [False],
    "verify_dtype": [torch.float64, torch.bfloat16],
    "memory_limit": [1 << 20],
    "cache_dir": ["scores"],
    "seed": [3],
    "progress": [True],
    "alone": [True],
    "weights": [],  # of a model on the meta device: see tests/streaming
    "out": [],
}

#: What goes with an option for it to do something.
WITH: dict[str, dict[str, Any]] = {
    "also": {"form": "module"},
    "uniform": {"form": "module"},
    "loss": {"method": "taylor"},
    "seed": {"method": "random"},
    "cache_dir": {"method": "hrank"},
    "verify_dtype": {"budget": 0.8},  # outputs that vary enough for bfloat16
}

#: Minutes on these wide layers; ``scoring/test_every_criterion.py`` has them on narrow ones.
LONG = {"spvr", "kl", "joint", "chip"}

#: Words of the refusals that are right: a network without what is asked for, or a budget that the option makes unreachable.
REFUSALS = (
    r"expects hidden units of an MLP|no channel of this model can be removed|batch norms whose scale|cannot be reached|"
    r"one object of settings|expects experts that may go"
)

#: One model sees every option; the others see those that change the structure or the weights, in turns, which take minutes as it is.
WHOLE = ("vit",)
TELLING = {"resnet": ("recover", "form"), "resnext": ("units", "form"), "mobilenet": ("ratios",)}

#: Sizes that are free take as long to capture as all the rest, and are so where it may matter.
FREE = ("recover", "form", "units", "dynamic_shapes")

CASES = [
    (name, option, index)
    for name in MODELS
    for option, values in SETTINGS.items()
    for index, value in enumerate(values)
    if not (option == "method" and value in LONG) and (name in WHOLE or option in TELLING[name])
]


@cache
def trained(name: str) -> nn.Module:
    torch.manual_seed(0)
    return randomise(MODELS[name](), 0, (torch.randn(8, 3, 32, 32),)).eval()


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [(torch.randn(8, 3, 32, 32, generator=draw), torch.arange(8) % 5) for _ in range(2)]


def test_every_option_is_among_them() -> None:
    assert {entry.name for entry in fields(Options)} == SETTINGS.keys() - {"budget"}


@pytest.mark.parametrize(
    ("name", "option", "index"), but_slow(CASES, quick=[(name, "recover", 1) for name in ("vit", "resnet")])
)
def test_an_option_gives_a_verified_result_or_says_why_not(
    name: str, option: str, index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model, value = trained(name), SETTINGS[option][index]
    before = fingerprint(model)
    given = {"budget": None if option == "ratios" else 0.6, "progress": False, **WITH.get(option, {}), option: value}
    if option not in FREE or name not in WHOLE:
        given["dynamic_shapes"] = {}
    try:
        pruned = fxprune.compile(model, batches(), **given)
    except fxprune.FxpruneError as error:
        assert any(words in str(error) for words in REFUSALS.split("|")), error
    else:
        _check(pruned, given)
    assert fingerprint(model) == before


def _check(pruned: fxprune.PrunedModule, given: dict[str, Any]) -> None:
    report = pruned.report
    assert report.verified is (None if given.get("verify") is False else True), report.doubt
    assert sum(p.numel() for p in pruned.parameters()) == report.params[1] <= report.params[0]
    wanted = given["budget"]
    shares = (
        {"params": wanted} if isinstance(wanted, float) else {k: getattr(wanted, k, None) for k in ("params", "macs")}
    )
    for name, share in shares.items():
        before, after = getattr(report, name)
        assert share is None or after <= share * before
    kept = [row.after for row in report.groups if row.kind == "channel" and 0 < row.after < row.before]
    assert all(after % given.get("round_to", 1) == 0 for after in kept)
    if "block" not in given.get("units", ()):  # what a block that went had made is gone
        assert all(
            row.after >= min(given.get("min_keep", 1), row.before) for row in report.groups if row.kind == "channel"
        )
