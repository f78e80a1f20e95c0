"""Names, ties and persistence of the captured tensors."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxprune.capturing.captured import capture
from tests.models.fn import Fn
from tests.support.capturing import assert_equal, attributes, check, nodes, raw, run


class Tied(nn.Module):
    """A head tied to the embedding, a layer called twice and one shared under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(9, 4)
        self.layer = nn.Linear(4, 4)
        self.same = self.layer
        self.head = nn.Linear(4, 9, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("kept", torch.randn(4))
        self.register_buffer("fleeting", torch.randn(4), persistent=False)
        self.register_buffer("again", self.kept)

    def forward(self, ids: Tensor) -> Tensor:
        y = self.layer(self.same(self.layer(self.embed(ids)))) + self.kept * self.fleeting + self.again
        return self.head(y)


def test_ties_are_recovered_by_identity():
    model, ids = Tied().eval(), torch.randint(9, (2, 5))
    names = {n.name for n in raw(model, ids).nodes if n.op == "placeholder" and n.users}
    assert "p_embed_weight" not in names, "torch.export uses the last name of a tie: that is the trap"
    captured = capture(model, (ids,))
    assert captured.ties == {
        "head.weight": "embed.weight",
        "same.weight": "layer.weight",
        "same.bias": "layer.bias",
        "again": "kept",
    }
    assert sorted(attributes(captured)) == ["embed.weight", "fleeting", "kept", "layer.bias", "layer.weight"]
    (weight,) = (n for n in captured.module.graph.nodes if n.target == "embed.weight")
    assert {str(user.target) for user in weight.users} == {"aten.embedding.default", "aten.linear.default"}
    assert captured.module.get_parameter("embed.weight") is model.head.weight
    with torch.no_grad():
        assert_equal(model(ids), run(captured, ids))


def test_persistence_is_that_of_the_model():
    model = Tied()
    captured = capture(model, (torch.randint(9, (2, 5)),))
    assert captured.persistent == set(model.state_dict())
    assert set(captured.module.state_dict()) == {"embed.weight", "layer.weight", "layer.bias", "kept"}
    assert captured.module.fleeting is model.fleeting


def test_every_call_of_a_module_knows_its_module():
    captured = capture(Tied(), (torch.randint(9, (2, 5)),))
    paths = [node.meta["module"] for node in nodes(captured, "linear.default")]
    assert set(paths) <= {"layer", "same", "head"}
    assert all(isinstance(captured.model.get_submodule(path), nn.Linear) for path in paths)
    stacks = [node.meta["nn_module_stack"] for node in nodes(captured, "linear.default")]
    assert len({tuple(stack) for stack in stacks}) == 4, "the stack tells the calls apart"
    assert "return self.head(y)" in nodes(captured, "linear.default")[-1].meta["stack_trace"]


def test_functional_parameters_hang_in_plain_containers():
    def forward(self: Any, x: Tensor) -> Tensor:
        return torch.nn.functional.linear(x, self.inner.weight)

    captured = check(Fn(forward, inner=nn.Linear(4, 4)), torch.randn(3, 4, dtype=torch.float64))
    assert type(captured.module.inner) is nn.Module
    assert captured.unused == {"inner.bias"}
