"""The operators that a file may name: all that have a rule, and none that reaches further."""

from __future__ import annotations

import pytest
import torch
from torch._ops import OpOverload

from fxprune.ops.checked import NAMESPACES, is_admitted, largest, objection, parts, work
from fxprune.ops.registry import registered

aten = torch.ops.aten

#: They have a rule, and are not admitted: one runs code of the user's, some trust offsets, lengths, states or dimensions, and
#: what of fake quantisation only training makes was not examined.
TRUSTING = {
    "fxprune::function",
    *(f"aten::{name}" for name in ("lstm", "embedding_bag", "segment_reduce", "_fft_c2c", "_fft_c2r", "_fft_r2c")),
    "aten::fake_quantize_per_tensor_affine_cachemask",
    "aten::fake_quantize_per_channel_affine_cachemask",
    "aten::_fake_quantize_per_tensor_affine_cachemask_tensor_qparams",
    "aten::_fake_quantize_learnable_per_tensor_affine",
    "aten::_fake_quantize_learnable_per_channel_affine",
}


def test_what_has_a_rule_of_ours_is_admitted() -> None:
    ours = [op for op in registered() if isinstance(op, OpOverload) and op.namespace in NAMESPACES]
    assert len(ours) > 200 and {op._schema.name for op in ours if not is_admitted(op)} <= TRUSTING


@pytest.mark.parametrize(
    "name", ["linear.default", "sym_size.int", "index_put.default", "fill_.Scalar", "div.Tensor_mode"]
)
def test_what_models_call_is_admitted(name: str) -> None:
    packet, _, overload = name.partition(".")
    assert is_admitted(getattr(getattr(aten, packet), overload))


@pytest.mark.parametrize(
    "name",
    [
        "mul.left_t",
        "add.str",
        "add.out",
        "relu_.default",
        "set_.source_Tensor",
        "resize_.default",
        "_unsafe_index.Tensor",
        "_embedding_bag.default",
        "_fft_c2c.default",
        "segment_reduce.default",
        "ctc_loss.IntList",
        "from_file.default",
        "_assert_async.msg",
        "special_chebyshev_polynomial_t.n_scalar",
        "linalg_matrix_power.default",
        "lstm.input",
        "gru.data",
    ],
)
def test_what_is_not_known_is_not_admitted(name: str) -> None:
    packet, _, overload = name.partition(".")
    assert not is_admitted(getattr(getattr(aten, packet), overload))


@pytest.mark.parametrize("name", ["dtype", "layout", "memory_format", "device"])
@pytest.mark.parametrize("value", [-7, 100_000, "x", 1.5])
def test_a_number_stands_for_no_kind_of_tensor(name: str, value: object) -> None:
    assert f"{name}: expected a {name}" in str(objection(aten.empty_like.default, (torch.ones(2),), {name: value}))
    assert objection(aten.empty_like.default, (torch.ones(2),), {"dtype": torch.int8, name: None}) is None


def test_whole_numbers_are_cut_off_over_a_constant_alone() -> None:
    whole, real, trunc = torch.ones(2, dtype=torch.int64), torch.ones(2), {"rounding_mode": "trunc"}
    assert objection(aten.div.Tensor_mode, (whole, whole), trunc)
    assert objection(aten.div.Scalar_mode, (whole, -1), trunc)
    assert objection(aten.div.Scalar_mode, (whole, 2), trunc) is None
    assert objection(aten.div.Tensor_mode, (real, whole), trunc) is None
    assert objection(aten.div.Tensor_mode, (whole, whole), {"rounding_mode": "floor"}) is None


@pytest.mark.parametrize(
    ("shape", "dim", "sound"), [([4, 1], 0, True), ([1, 5], 1, True), ([1], 0, False), ([4], 0, False), ([], -1, True)]
)
def test_norms_must_be_as_many_as_rows(shape: list[int], dim: int, sound: bool) -> None:
    assert (objection(aten._weight_norm.default, (torch.ones(4, 5), torch.ones(shape), dim), {}) is None) is sound


def test_a_result_whose_size_values_tell_is_taken_at_its_largest() -> None:
    x, mask = torch.ones(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    assert largest(aten.nonzero.default, (mask,), {}).shape == (12, 2)
    assert largest(aten.masked_select.default, (x, mask), {}).shape == (12,)
    assert largest(aten.index.Tensor, (x, [mask]), {}).shape == (12,)
    assert largest(aten.index.Tensor, (x, [mask[:, 0]]), {}).shape == (3, 4)
    assert largest(aten.one_hot.default, (x,), {}) is None


def test_parts_are_counted_before_they_are_made() -> None:
    x = torch.empty(1 << 20, device="meta")
    assert parts(aten.split.Tensor, (x, 3), {}) == -(-(1 << 20) // 3)
    assert parts(aten.unbind.int, (x,), {}) == 1 << 20
    assert parts(aten.chunk.default, (x, 7), {}) == 7
    assert parts(aten.tensor_split.sections, (x, 9), {}) == 9
    assert parts(aten.relu.default, (x,), {}) == 1


def test_work_that_torch_does_not_count() -> None:
    image, square = torch.ones(1, 1, 8, 8), torch.eye(4)
    assert work(aten.avg_pool2d.default, (image, [4, 2]), {}, torch.ones(5, 7)) == 35 * 8
    assert work(aten.linalg_svd.default, (square,), {}, (square, square[0], square)) == 20 * 36 * 4
    assert work(aten.cdist.default, (torch.ones(2, 3), torch.ones(5, 3)), {}, torch.ones(2, 5)) == 30
    assert work(aten.relu.default, (image,), {}, image) == 0
