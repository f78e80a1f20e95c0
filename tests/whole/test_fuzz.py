"""Networks that Hypothesis draws, against the masked twin and against the original with zeros."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, given, note, settings
from torch import Tensor, nn

from tests.models.blocks_image import Conv, Dense, Residual
from tests.models.blocks_rare import Region, Vanishing
from tests.models.blocks_tokens import Attention, Mlp, Position, TokenResidual, TokenSplit
from tests.models.networks import RARE, Network
from tests.support.fuzzing import Case, Pruning, cases, run
from tests.support.marks import but_slow, drawn
from tests.support.originals import Pair, against_the_original, paired
from tests.support.zeroed import Inputs


@pytest.mark.parametrize(("kind", "count"), [("image", 36), ("tokens", 20), ("ids", 12)])
@pytest.mark.slow
def test_networks(kind: str, count: int) -> None:
    @settings(
        max_examples=drawn(count),
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(cases(most=2, kinds=(kind,)))
    def check(case: Case) -> None:
        outcome = run(case)
        note(f"{outcome.status}: {outcome.detail}")
        assert outcome.status not in ("wrong", "crash"), outcome.detail
        assert not outcome.missing, f"units found and expected: {outcome.missing}"

    check()


@pytest.mark.parametrize("kind", RARE)
@pytest.mark.slow
def test_rare_networks(kind: str) -> None:
    """Beside the original with zeros: outputs, other sizes, gradients and buffers of a training step."""

    @settings(
        max_examples=drawn(25), deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(cases(most=2, kinds=(kind,)))
    def check(case: Case) -> None:
        found = against_the_original(case)
        assert found.status != "wrong", found.faults

    check()


WRONG = [
    Network("image", 8, (Conv(8), Conv(6, groups=2)), "pool"),
    Network("image", 8, (Residual((Conv(8),)), Dense((4, 4))), "flatten"),
    Network("tokens", 8, (TokenResidual((Attention(),)), TokenResidual((Mlp(8, "glu"),))), "mean"),
    Network("ids", 8, (Attention(heads=4, how="matmul", qkv="unbind"),), "tied"),
]


@pytest.mark.parametrize("network", WRONG, ids=lambda n: type(n.blocks[0]).__name__ + "-" + n.kind)
@pytest.mark.parametrize("seed", but_slow([0, 1], quick=(0,)))
def test_a_wrong_plan_fails(network: Network, seed: int) -> None:
    outcome = run(Case(network, Pruning(ratio=0.4, seed=seed)), mutate=True)
    assert outcome.status == "verified", outcome.detail
    assert outcome.detected is True


# -- the original with zeros ----------------------------------------------------------------------------------------

PLAIN = Case(Network("image", 8, (Residual((Conv(8, act="tanh"),)),), "pool"), Pruning(ratio=0.4))


@pytest.fixture(scope="module")
def plain() -> tuple[Pair, Inputs, dict[str, Tensor]]:
    """The original and its result, inputs, and the state of the original."""
    pair, inputs, _ = paired(PLAIN)
    return pair, inputs, copy.deepcopy(pair.original.state_dict())


def test_a_network_is_verified() -> None:
    found = against_the_original(PLAIN)
    assert (found.status, found.faults) == ("verified", [])
    assert found.units > 0 and found.sizes == Counter(equal=5)


@pytest.mark.slow
def test_a_block_that_comes_back_has_something_left_in_each_half() -> None:
    blocks = (
        Attention(heads=4, kv_heads=2, size=3, how="matmul"),
        TokenResidual((TokenSplit("chunk"), TokenSplit("chunk"))),
    )
    case = Case(Network("ids", 4, blocks, "tied", outputs="dict"), Pruning(0.5, None, min_keep=2, blocks=True))
    for seed in range(drawn(12)):
        found = against_the_original(replace(case, pruning=replace(case.pruning, seed=seed)))
        assert found.status != "wrong", found.faults


CANCELLED = Network("tokens", 8, (Region("enable_grad"), Vanishing("norm")), "flatten")
SHORTER = Network("ids", 6, (TokenResidual((Position("table"),), norm="batch", scaled=True),), "first", "film")


@pytest.mark.parametrize(
    ("network", "pruning", "sizes"),
    [
        (CANCELLED, Pruning(0.15, None), Counter(equal=2, refused=3)),
        (SHORTER, Pruning(ratio=1.0, blocks=True, seed=341), Counter(equal=4, neither=1)),
    ],
    ids=("a gradient of terms that cancel", "a size that only what is gone refused"),
)
def test_what_is_no_fault(network: Network, pruning: Pruning, sizes: Counter[str]) -> None:
    found = against_the_original(Case(network, pruning))
    assert (found.status, found.faults, found.sizes) == ("verified", [], sizes)


def more_weight(pruned: nn.Module) -> None:
    with torch.no_grad():
        pruned.get_parameter("stem.weight")[0, 0] += 0.1


def more_gradient(pruned: nn.Module) -> None:
    pruned.get_parameter("stem.weight").register_hook(lambda gradient: 1.001 * gradient)


def no_gradient(pruned: nn.Module) -> None:
    pruned.get_parameter("stem.weight").requires_grad_(False)


def another_buffer(pruned: nn.Module) -> None:
    name = next(name for name, _ in pruned.named_buffers() if name.endswith("running_mean"))

    def write(module: nn.Module, _: object) -> None:
        module.get_buffer(name).add_(0.1 * module.training)

    pruned.register_forward_pre_hook(write)


def always(change: Callable[[Tensor], Tensor], *, training: bool) -> Callable[[nn.Module], None]:
    def put(pruned: nn.Module) -> None:
        pruned.register_forward_hook(lambda module, _, out: change(out) if module.training == training else out)

    return put


def fail(x: Tensor) -> Tensor:
    raise IndexError("nothing of fxprune's")


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        (more_weight, {"output", "size", "training"}),
        (more_gradient, {"gradient"}),
        (no_gradient, {"gradient"}),
        (another_buffer, {"buffer", "output"}),
        (always(lambda x: x * 1.001, training=True), {"training"}),
        (always(lambda x: x if len(x) == 3 else x[:2], training=False), {"size"}),
        (always(fail, training=True), {"error"}),
        (always(lambda x: x if len(x) == 3 else fail(x), training=False), {"error"}),
    ],
    ids=("weight", "gradient", "none", "buffer", "training", "size", "error", "error at a size"),
)
def test_a_wrong_result_is_found_out(
    plain: tuple[Pair, Inputs, dict[str, Tensor]], wrong: Callable[[nn.Module], None], what: set[str]
) -> None:
    pair, inputs, state = plain
    pair.original.load_state_dict(state)
    pair = replace(pair, pruned=copy.deepcopy(pair.pruned))
    wrong(pair.pruned)
    sized: list[tuple[str, str]] = []
    pair.at(PLAIN.network.example(5, 1), sized)
    assert {name for name, _ in (*pair.other_outputs(inputs), *sized, *pair.other_step(inputs))} == what
