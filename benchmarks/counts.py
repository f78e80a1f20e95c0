"""Parameters and MACs at the layer-wise ratios of IPPRO's Appendix C (arXiv 2507.14171), beside the published figures.

Counts do not depend on weights. "Stream": the groups that shortcuts join, which the paper calls downsample layers.
``python benchmarks/counts.py``
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torchvision
from common import resnet_cifar
from common.cli import begin, guarded, name_of, parser
from common.results import record
from common.vgg import Vgg
from torch import nn

from fxprune.budget.solver import solve
from fxprune.capturing.captured import capture
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple

Case = tuple[str, dict[str, float], float, float]


def resnet50(coupling: Coupling) -> Iterator[Case]:
    """Ratios of the stream and of the rest."""
    stream = [g.name for g in coupling.groups if any("downsample" in layer for layer in g.producers)]
    for s, r, macs, params in ((0.25, 0.4, -47.7, -46.4), (0.35, 0.45, -60.0, -60.0), (0.45, 0.6, -74.2, -74.2)):
        yield f"stream {s}, rest {r}", {**dict.fromkeys(stream, s), "default": r}, macs, params


def mobilenet(coupling: Coupling) -> Iterator[Case]:
    """Ratios of the first layer and of the rest."""
    yield "first 0.2, rest 0.35", {coupling.groups[0].name: 0.2, "default": 0.35}, -54.2, -42.3


def resnet56(coupling: Coupling) -> Iterator[Case]:
    """Ratios of the stream (one group: the padded shortcuts tie all stages) and of the inner channels."""
    yield "stream 0.15, inner 0.4", {"conv1": 0.15, "default": 0.4}, -49.3, -49.7
    stages = {"layer1*": 0.6, "layer2*": 0.65, "layer3*": 0.7}
    yield "stream 0.3, inner 0.6, 0.65, 0.7 by stage", {"conv1": 0.3, **stages}, -71.8, -77.7


def vgg19(coupling: Coupling) -> Iterator[Case]:
    """Ratios of eight, four and four layers."""
    names = [g.name for g in coupling.groups]
    ratios = {**dict.fromkeys(names[:8], 0.65), **dict.fromkeys(names[8:12], 0.7), "default": 0.6}
    yield "0.65 x 8, 0.7 x 4, 0.6 x 4", ratios, -87.5, -87.9


NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, Callable[[Coupling], Iterator[Case]]]] = {
    "resnet50": (torchvision.models.resnet50, 224, resnet50),
    "mobilenet_v2": (torchvision.models.mobilenet_v2, 224, mobilenet),
    "CIFAR resnet56": (lambda: resnet_cifar.CifarResNet(9), 32, resnet56),
    "CIFAR vgg19": (lambda: Vgg(19, 100), 32, vgg19),
}


def main() -> None:
    """Prints and records the table."""
    options = begin(parser(__doc__.splitlines()[0]))
    rows: list[dict[str, Any]] = []
    for name, (build, size, cases) in list(NETWORKS.items())[-1 if options.quick else 0 :]:
        coupling = couple(capture(build().eval(), (torch.randn(2, 3, size, size),)))
        scores = {g.name: torch.rand(len(g.units)) for g in coupling.groups}
        for label, ratios, macs, params in cases(coupling):
            solution = solve(coupling, scores, ratios=ratios)
            ours = [100 * (solution.after[i] / solution.before[i] - 1) for i in (1, 0)]
            rows.append(
                {
                    "network": name,
                    "ratios": label,
                    "MACs %": round(ours[0], 1),
                    "published": macs,
                    "params %": round(ours[1], 1),
                    "published params": params,
                }
            )
    title = "Counts at the ratios of IPPRO's Appendix C"
    print(record(name_of("counts", options), rows, title=title, seed=options.seed, notes=[]))


if __name__ == "__main__":
    guarded(main)
