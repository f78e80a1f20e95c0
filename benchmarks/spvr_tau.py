"""SPvR's Appendix A: how well its score ranks units, beside KL, by Kendall's tau with the true effect of masking.

scikit-learn's ``make_classification`` (100 features, 1,000 samples, 2 % flipped labels), one hidden layer of 64 ReLU
units, Adam at 1e-3. True effect of a unit: how many samples are misclassified when it is masked, counted against the
network's own unmasked prediction, or against the true labels. The text names neither the number of epochs nor which
count is meant. ``python benchmarks/spvr_tau.py [--quick]``
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np
import torch
from common.cli import begin, guarded, name_of, parser
from common.results import record
from torch import Tensor, nn
from torch.nn import functional as F

from fxprune.capturing.captured import capture
from fxprune.capturing.inputs import PlainInputs
from fxprune.coupling.coupling import Coupling
from fxprune.coupling.interpreter import couple
from fxprune.coupling.selection import Selection
from fxprune.scoring import score
from fxprune.scoring.spvr import Spvr
from fxprune.twin.interpreter import Run

PUBLISHED = {"spvr": 0.861, "kl": 0.586}


def trained(x: Tensor, y: Tensor, epochs: int, seed: int) -> nn.Module:
    """Returns the network after so many epochs in batches of 32."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(100, 64), nn.ReLU(), nn.Linear(64, 2))
    optimiser = torch.optim.Adam(net.parameters(), 1e-3)
    for _ in range(epochs):
        for chosen in torch.randperm(len(x)).split(32):
            optimiser.zero_grad()
            F.cross_entropy(net(x[chosen]), y[chosen]).backward()
            optimiser.step()
    return net.eval()


def errors(coupling: Coupling, x: Tensor, y: Tensor | None) -> Tensor:
    """Returns for each hidden unit how many predictions are wrong when it is masked (``y`` None: unlike unmasked)."""
    (group,) = coupling.groups
    truth = Run(Selection.nothing(coupling))((x,))[0].argmax(1) if y is None else y
    masked = (Run(Selection(coupling, coupling.removed_mask([unit])))((x,))[0] for unit in group.units)
    return torch.tensor([float((output.argmax(1) != truth).sum()) for output in masked])


def taus(epochs: int, seed: int) -> dict[tuple[str, str], float]:
    """Returns Kendall's tau of each criterion with each count, for one seed."""
    from scipy.stats import kendalltau
    from sklearn.datasets import make_classification

    features, labels = make_classification(n_samples=1000, n_features=100, flip_y=0.02, random_state=seed)
    x, y = torch.from_numpy(features).float(), torch.from_numpy(labels).long()
    coupling = couple(capture(trained(x, y, epochs, seed), (x[:4],)))
    inputs = PlainInputs([(x,)])
    found = {}
    for name, method in (("spvr", Spvr(group_size=1)), ("kl", "kl")):
        (scores,) = score(coupling, inputs, method).values()
        for count, truth in (("own prediction", None), ("labels", y)):
            found[name, count] = float(kendalltau(scores, errors(coupling, x, truth)).statistic)
    return found


def main() -> None:
    """Prints and records the table."""
    made = parser(__doc__.splitlines()[0])
    made.add_argument("--seeds", type=int, default=10)
    options = begin(made)
    rows: list[dict[str, Any]] = []
    for epochs in (3,) if options.quick else (3, 8, 30):
        runs = [taus(epochs, options.seed + i) for i in range(1 if options.quick else options.seeds)]
        for count in ("own prediction", "labels"):
            row: dict[str, Any] = {"epochs": epochs, "errors against": count}
            for name in PUBLISHED:
                values = [run[name, count] for run in runs if not np.isnan(run[name, count])]
                row[name] = round(statistics.mean(values), 3) if values else None
                row[f"{name} deviation"] = round(statistics.pstdev(values), 3) if values else None
            rows.append(row)
            print(row, flush=True)
    notes = [
        f"Mean and standard deviation over {len(runs)} seeds; published: SPvR {PUBLISHED['spvr']}, KL {PUBLISHED['kl']}.",
        "Units one by one (group size 1), all 1,000 samples.",
    ]
    title = "Kendall's tau of unit scores with the true effect of masking"
    print(record(name_of("spvr_tau", options), rows, title=title, seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)
