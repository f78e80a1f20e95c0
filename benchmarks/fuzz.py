"""Networks drawn at random: what computes, trains or refuses otherwise than the original without what was removed.

``python benchmarks/fuzz.py [--count N] [--most BLOCKS] [--kinds ...] [--seed S] [--rows FILE] [--quick]``
"""

from __future__ import annotations

import time
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable
from functools import partial
from typing import Any

from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.results import record
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.models.networks import KINDS, RARE
from tests.support.fuzzing import Case, Outcome, cases, run
from tests.support.originals import FAULTS, Found, against_the_original

CHUNK = 50  # networks that are drawn, and kept, together
EVERY = 4  # of so many chunks of the usual kinds one goes to the masked twin as well
STATUS = ("verified", "announced", "refused", "nothing", "twin", "wrong")
SIZES = ("equal", "refused", "neither")
TWIN = ("twins", "units", "missing", "wrong plans", "found out")

Counts = dict[str, Counter[str]]


def chunk(kind: str, number: int, count: int, most: int, start: int) -> dict[str, Any]:
    """Returns what came of so many networks of one kind, counted for each of their parts, and the faults in words."""
    counts: Counts = defaultdict(Counter)
    faults: list[str] = []
    refused: Counter[str] = Counter()

    @seed(start + number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(most, (kind,)))
    def one(case: Case) -> None:
        found = against_the_original(case)
        twin = run(case, mutate=True) if kind in KINDS and number % EVERY == 0 else None
        counted = of(found) + (Counter() if twin is None else of_twin(twin))
        for part in {"all", kind, *case.network.kinds()}:
            counts[part] += counted
        faults.extend(f"{name}: {text}\n  {case}" for name, text in dict(found.faults).items())
        if twin is not None and (twin.status in ("wrong", "crash") or twin.missing):
            faults.append(f"twin {twin.status}: {twin.detail} {twin.missing or ''}\n  {case}")
        if found.why:
            refused[found.why.partition("\n")[0][:120]] += 1

    began = time.perf_counter()
    one()
    return {
        "networks": counts["all"]["networks"],
        "wrong": counts["all"]["wrong"],
        "seconds": round(time.perf_counter() - began, 2),
        "counts": {part: dict(value) for part, value in counts.items()},
        "faults": faults,
        "refused": dict(refused),
    }


def of(found: Found) -> Counter[str]:
    """Returns what one network adds to a line."""
    counted: Counter[str] = Counter({"networks": 1, found.status: 1, "removed": found.units})
    counted.update({f"{name} wrong" for name, _ in found.faults})
    counted.update({f"size {name}": value for name, value in found.sizes.items()})
    return counted


def of_twin(outcome: Outcome) -> Counter[str]:
    """Returns what the comparison of one network with its masked twin adds to a line."""
    missing = sum(wanted - found for found, wanted in outcome.missing.values())
    counted: Counter[str] = Counter({"twins": 1, "units": outcome.units, "missing": missing})
    counted["twin wrong"] = outcome.status in ("wrong", "crash")
    counted.update({"wrong plans": outcome.detected is not None, "found out": outcome.detected is True})
    return counted


def total(rows: Iterable[dict[str, Any]]) -> Counts:
    """Returns the counts of all chunks, by part."""
    found: Counts = defaultdict(Counter)
    for row in rows:
        for part, counted in row["counts"].items():
            found[part].update(counted)
    return found


def line(part: str, counted: Counter[str]) -> dict[str, Any]:
    """Returns one line of the table."""
    return {
        "part": part,
        "networks": counted["networks"],
        **{name: counted[name] for name in STATUS},
        **{f"{name} wrong": counted[f"{name} wrong"] for name in FAULTS},
        **{f"size {name}": counted[f"size {name}"] for name in SIZES},
        "removed": counted["removed"],
        **{name: counted[name] for name in (*TWIN, "twin wrong")},
    }


def main() -> None:
    """Prints and records the table; ends with 1 if anything was wrong, or failed with an error that is not ours."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument("--count", type=int, default=1000, help="networks")
    made.add_argument("--most", type=int, default=2, help="blocks in a row at most")
    made.add_argument("--kinds", nargs="+", choices=(*KINDS, *RARE), default=(*KINDS, *RARE), help="of network")
    options = begin(made)
    warnings.simplefilter("ignore")
    size = 1 if options.quick else CHUNK
    chunks = 1 if options.quick else -(-options.count // (CHUNK * len(options.kinds)))
    kept = Kept(options.rows, shown=("kind", "chunk", "networks", "wrong", "seconds"))
    for number in range(chunks):
        for kind in options.kinds:  # a seed of its own for each kind: equal ones give equal networks
            key = {"kind": kind, "chunk": number, "most": options.most, "seed": options.seed}
            start = options.seed + 100_000 * ((*KINDS, *RARE).index(kind) + 1)
            kept.add(key, partial(chunk, kind, number, size, options.most, start))
    counts = total(kept.rows)
    first = ("all", *options.kinds)
    rows = [line(part, counts[part]) for part in (*first, *sorted(set(counts) - set(first)))]
    for row in kept.rows:
        print(*row["faults"], sep="\n", end="\n" if row["faults"] else "")
    title = "Fuzz: networks drawn at random, pruned at random, against the original with zeros"
    print(record(name_of("fuzz", options), rows, title=title, seed=options.seed, notes=notes(kept)))
    raise SystemExit(1 if any(rows[0][key] for key in ("wrong", "twin wrong", "missing")) else 0)


def notes(kept: Kept) -> list[str]:
    """Returns what the columns say."""
    refused = sum((Counter(row["refused"]) for row in kept.rows), Counter())
    seconds = sum(row["seconds"] for row in kept.rows) / max(sum(row["networks"] for row in kept.rows), 1)
    return [
        "A line counts the networks that contain the part; a network has several. The original is built once more, all of "
        "its weights set to zero that the plan does not keep (tests/support/zeroed.py, which knows nothing of the compiler), "
        "and called beside the result in float64: outputs at the captured size and five others, gradients and buffers of a "
        "training step, outputs after it. Layer and group norms are over what is kept, unless all that goes was zero before.",
        "Verified: all equal. Announced: training is another, and a warning says so. Refused: in words, at compiling. "
        "Twin: zeros are not what is promised (a softmax over channels), the masked twin alone has compared. Nothing: no "
        "channel may go. Wrong: any of the next columns, where error is one that is not fxprune's.",
        "Size: calls at another size that gave what the original gives, that were refused by an error of fxprune's, and that "
        "the original does not take either.",
        f"Twins: one in {EVERY} chunks of the usual kinds goes to the masked twin as well; missing: units that a block must offer "
        "and does not; wrong plans: one kept index shifted on purpose, and whether verification found it out.",
        *(f"Refused, {count} times: {why}" for why, count in refused.most_common(8)),
        f"{seconds:.2f} s a network.",
        *kept.notes,
    ]


if __name__ == "__main__":
    guarded(main)
