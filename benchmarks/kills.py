"""Kills, full disks, damaged files and processes that hang: is there ever anything but the old, the new, or a run that goes on to the same.

``python benchmarks/kills.py [--quick] [--kills 40] [--works ...] [--rows FILE]``
"""

from __future__ import annotations

import random
import shutil
import signal
import tempfile
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

from common.cli import begin, guarded, name_of, parser, resumable
from common.kept import Kept
from common.killable import WORKS
from common.killing import LONG, Ended, Setting, at_random, done
from common.results import record


class Bench:
    """One kind of work: what lies there before it, and what it gives when nothing disturbs it.

    Args:
        name: of the work.
        folder: for all that comes.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.work, self._folder, self._count = name, WORKS[name], folder, 0
        self._before = folder / "before"
        self._before.mkdir()
        self.work.prepare(self._before)
        self.old = self.work.state(self._before)
        place = self.fresh()
        first = self.run(place)
        self.result, self.new, self.left = first.results[0], self.work.state(place), _names(place)
        assert self.result is not None and set(first.results) == {self.result}, first
        self.size = max(file.stat().st_size for file in place.rglob("*") if file.is_file())
        self.seconds = self.run(self.fresh()).seconds

    def fresh(self) -> Path:
        """Returns a new folder with what lies there before."""
        self._count += 1
        return Path(shutil.copytree(self._before, self._folder / f"{self._count}" / "here"))

    def run(self, place: Path, **how: Any) -> Ended:
        """Does the work in a folder."""
        with tempfile.TemporaryDirectory(dir=self._folder) as beside:
            return done(self.name, place, Path(beside), **how)

    def sooner(self, place: Path) -> None:
        """Has moments be drawn from less time, after one that came too late; its folder is gone."""
        self.seconds *= 0.9
        shutil.rmtree(place.parent)

    def judged(self, place: Path, ended: Ended, *, met: bool) -> dict[str, Any]:
        """Returns what is wrong in a folder after a fault, and what lies there; it is gone then."""
        wrong = []
        if met and ended.seconds > LONG:
            wrong.append(f"did not end: {ended.said}")
        try:
            found = self.work.state(place)
        except Exception as error:
            found, wrong = {}, [*wrong, f"neither old nor new: {type(error).__name__}: {str(error)[:200]}"]
        state = "old" if found == self.old else "new" if found == self.new else "on the way"
        if state == "on the way" and "trained" not in self.name:
            wrong.append(f"neither old nor new: {found}")
        again = self.run(place)
        if set(again.results) != {self.result}:
            wrong.append(f"another result: {again.codes} {again.said}")
        elif self.work.state(place) != self.new:
            wrong.append("another state in the end")
        litter = sorted(_names(place) - self.left)
        shutil.rmtree(place.parent)
        return {"state": state, "wrong": wrong, "litter": litter}


def _names(place: Path) -> set[str]:
    return {str(file.relative_to(place)) for file in place.rglob("*")}


def killed(
    bench: Bench, draw: random.Random, *, every: bool, then: Callable[[Path, random.Random], None] | None = None
) -> dict[str, Any] | None:
    """Kills at a random moment; None if all was done by then."""
    place = bench.fresh()
    ended = bench.run(place, fault=at_random(draw, bench.seconds, signal.SIGKILL, every=every))
    if not ended.hit:
        return bench.sooner(place)
    if then is not None:
        then(place, draw)
    return {**bench.judged(place, ended, met=True), "seconds": ended.seconds}


def hung(bench: Bench, draw: random.Random) -> dict[str, Any] | None:
    """Stops one process, which the others wait for, for some seconds; None if all was done by then."""
    place, setting = bench.fresh(), Setting(patience=8.0)
    ended = bench.run(place, setting=setting, fault=at_random(draw, bench.seconds, signal.SIGSTOP, every=False))
    return {**bench.judged(place, ended, met=True), "seconds": ended.seconds} if ended.hit else bench.sooner(place)


def full(bench: Bench, draw: random.Random) -> dict[str, Any] | None:
    """Has no file grow beyond a random size, as a full disk has it; None if all went in."""
    place = bench.fresh()
    ended = bench.run(place, setting=Setting(limit=int(draw.uniform(0, bench.size))))
    if all(code == 0 for code in ended.codes):
        return shutil.rmtree(place.parent)
    found = bench.judged(place, ended, met=False)
    if not any("Error" in said for said in ended.said):
        found["wrong"].append(f"no error said: {ended.codes} {ended.said}")
    return {**found, "seconds": ended.seconds}


def lacking(bench: Bench, draw: random.Random, *, cut: bool) -> dict[str, Any]:
    """Takes a file of weights away, or a part of it; it comes back afterwards."""
    place = bench.fresh()
    file = draw.choice(sorted((place / "in").glob("*.safetensors")))
    whole = file.read_bytes()
    if cut:
        file.write_bytes(whole[: draw.randrange(len(whole))])
    else:
        file.unlink()
    ended = bench.run(place)
    file.write_bytes(whole)
    found = bench.judged(place, ended, met=False)
    if ended.results[0] is not None:
        found["wrong"].append("a result without all weights")
    return {**found, "seconds": ended.seconds}


def flipped(place: Path, draw: random.Random) -> None:
    """Changes a byte of a file that an interrupted compilation left."""
    files = sorted(file for file in place.glob(".out.fxprune-work/**/*") if file.is_file() and file.stat().st_size)
    if files:
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 + draw.randrange(255)
        file.write_bytes(content)


#: What is done to some work at moments that are drawn; None where it did not meet it.
Fault = Callable[[Bench, random.Random], dict[str, Any] | None]


def faults(name: str, kills: int) -> dict[str, tuple[int, Fault]]:
    """Returns what is done to a kind of work, by its name: how often, and how."""
    kills = max(round(kills * WORKS[name].share), 1)
    few = max(kills // 8, 1)
    found: dict[str, tuple[int, Fault]] = {"killed": (kills, partial(killed, every=True))}
    if WORKS[name].processes > 1:
        found["one killed"] = (kills, partial(killed, every=False))
        found["one hangs"] = (few, hung)
    found["disk full"] = (few, full)
    if name == "streamed":
        found["shard missing"] = (few, partial(lacking, cut=False))
        found["shard cut short"] = (few, partial(lacking, cut=True))
        found["killed, its work damaged"] = (few, partial(killed, every=True, then=flipped))
    return found


def row(bench: Callable[[], Bench], times: int, fault: Fault, draw: random.Random) -> dict[str, Any]:
    """Returns what comes of a fault, so many times that it met the work."""
    found: list[dict[str, Any]] = []
    for _ in range(4 * times):
        if len(found) < times and (one := fault(bench(), draw)) is not None:
            found.append(one)
            if one["wrong"] or one["litter"]:
                print(one, flush=True)
    states = [one["state"] for one in found]
    return {
        "times": len(found),
        **{state: states.count(state) for state in ("old", "on the way", "new")},
        "wrong": sum(bool(one["wrong"]) for one in found),
        "litter": sum(bool(one["litter"]) for one in found),
        "ended after s": round(max((one["seconds"] for one in found), default=0.0), 1),
    }


def main() -> None:
    """Prints and records the table."""
    made = resumable(parser(__doc__.splitlines()[0]))
    made.add_argument(
        "--kills", type=int, default=36, help="how often each kind of work is killed; less where it takes long"
    )
    made.add_argument("--works", nargs="+", default=list(WORKS), choices=WORKS)
    options = begin(made)
    works, kills = (["trained"], 1) if options.quick else (options.works, options.kills)
    kept = Kept(options.rows)
    for name in works:
        with tempfile.TemporaryDirectory() as folder:
            bench = cache(partial(Bench, name, Path(folder)))
            for fault, (times, how) in faults(name, kills).items():
                draw = random.Random(f"{options.seed} {name} {fault}")
                kept.add({"work": name, "fault": fault}, partial(row, bench, times, how, draw))
    notes = [
        "SIGKILL, and SIGSTOP for one that hangs, at a moment that is drawn evenly over the time that the work takes undisturbed; a kill that came "
        "too late is drawn again, from nine tenths of that time. Afterwards: is what lies there that of before, or that of after, or a checkpoint on the way; and is what the "
        "same call then gives, to the bit, that of a run which was never disturbed. Wrong: anything else.",
        "disk full: no file may grow beyond a size that is drawn (RLIMIT_FSIZE). One that hangs: the process group was made with 8 s of patience. "
        "Damaged work: a byte of what a killed compilation left is changed.",
        "litter: files that neither the kill's survivors nor the next run cleared. ended after: the longest time from the fault to the end of the "
        "processes that it left.",
        *kept.notes,
    ]
    print(record(name_of("kills", options), kept.rows, title="Kills in the middle", seed=options.seed, notes=notes))


if __name__ == "__main__":
    guarded(main)
