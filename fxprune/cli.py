"""The command line: ``fxprune demo``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import fxprune
from fxprune.errors import FxpruneError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status: 0, 1 for an error to mend, 130 if interrupted."""
    options = _parser().parse_args(argv)
    try:
        return _demo(options)
    except FxpruneError as error:
        print(f"fxprune: error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"fxprune: error: {error.strerror or error}: {error.filename or 'file'}", file=sys.stderr)
    except KeyboardInterrupt:
        print("fxprune: interrupted", file=sys.stderr)
        return 130
    return 1


def _demo(options: argparse.Namespace) -> int:
    from fxprune import demo

    outcome = demo.run(seed=options.seed, budget=options.budget, method=options.method, out=options.out)
    if outcome.reloaded:
        return 0
    print("fxprune: error: the saved model, loaded again, differs", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fxprune", description="A compiler for structured pruning of PyTorch models."
    )
    parser.add_argument("--version", action="version", version=f"fxprune {fxprune.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="train, prune, fine-tune and time a small network on real data",
        description="Trains a small residual network on scikit-learn's digits, compiles it, prints the "
        "report, and compares the dense, the pruned and the fine-tuned network. Under a minute.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    demo.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    demo.add_argument("--budget", type=float, default=0.25, help="share of parameters to keep, in (0, 1]")
    demo.add_argument(
        "--method", default="variance", help="criterion: variance, magnitude, l1, l2, random, ..."
    )
    demo.add_argument("--out", metavar="DIR", help="save the fine-tuned model there, for fxprune.load")
    return parser


if __name__ == "__main__":
    sys.exit(main())
