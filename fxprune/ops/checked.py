"""The operators that a file may name: each is known to be pure and to check its bounds, or has a condition beside it here.

A list of what is allowed, not of what is forbidden: torch has 3,700 ``aten`` operators, among them ones that read a file, set
the seed, turn autograd off, loop as often as they are told, or trust an index. A model whose graph calls another operator is
saved all the same, and loads with an instance of the original. Names stand for all functional overloads of the operator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.utils import _pytree as pytree

#: Value by value.
_POINTWISE = """
    __and__ __or__ __xor__ abs absolute acos acosh add addcdiv addcmul angle arccos arccosh arcsin arcsinh arctan arctan2 arctanh asin
    asinh atan atan2 atanh bitwise_and bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp
    clamp_max clamp_min clip complex conj conj_physical copysign cos cosh deg2rad digamma div divide elu eq erf erfc erfinv exp exp2
    expm1 fill fix float_power floor floor_divide fmax fmin fmod frac ge gelu greater greater_equal gt hardshrink hardsigmoid hardswish
    hardtanh heaviside hypot i0 imag isclose isfinite isinf isnan isneginf isposinf isreal ldexp le leaky_relu lerp less less_equal
    lgamma log log10 log1p log2 log_sigmoid logaddexp logaddexp2 logical_and logical_not logical_or logical_xor logit lt masked_fill
    maximum minimum mish mul multiply nan_to_num ne neg negative nextafter not_equal polar positive pow rad2deg real reciprocal relu
    relu6 remainder resolve_conj resolve_neg round rrelu rsqrt rsub selu sgn sigmoid sign signbit silu sin sinc sinh softplus
    softshrink special_entr special_erf special_erfc special_erfcx special_erfinv special_exp2 special_expit special_expm1
    special_gammaln special_i0 special_i0e special_i1 special_i1e special_log1p special_log_ndtr special_logit special_ndtr
    special_ndtri special_round special_sinc special_xlog1py special_xlogy sqrt square sub subtract tan tanh threshold true_divide
    trunc where xlogy zero _prelu_kernel prelu glu
"""

#: Along dimensions.
_REDUCTIONS = """
    all amax amin aminmax any argmax argmin argsort bucketize count_nonzero cosine_similarity cummax cummin cumprod cumsum
    diff dist frobenius_norm histc kthvalue linalg_matrix_norm linalg_norm linalg_vector_norm log_softmax logcumsumexp logsumexp max
    mean median min mode msort nanmean nanmedian nansum norm nuclear_norm pairwise_distance prod renorm searchsorted softmax
    _log_softmax _softmax _safe_softmax sort special_log_softmax special_logsumexp special_softmax std std_mean sum sum_to_size topk
    trace var var_mean
"""

#: Values to other places. Indices are checked by each of them.
_PLACES = """
    adjoint alias as_strided atleast_1d atleast_2d atleast_3d broadcast_tensors broadcast_to cat channel_shuffle chunk column_stack
    concat concatenate constant_pad_nd contiguous diag diag_embed diagflat diagonal diagonal_scatter dstack expand expand_as flatten
    flip fliplr flipud gather hstack index index_add index_copy index_fill index_put index_reduce index_select mH mT masked_scatter
    masked_select matrix_H meshgrid moveaxis movedim narrow nonzero numpy_T pad permute pixel_shuffle pixel_unshuffle ravel
    reflection_pad1d reflection_pad2d reflection_pad3d repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d
    reshape reshape_as roll rot90 row_stack scatter scatter_add scatter_reduce select select_scatter slice slice_scatter split
    split_with_sizes squeeze stack swapaxes swapdims t take take_along_dim tensor_split tile transpose tril triu unbind unflatten
    unfold unsqueeze view view_as view_as_complex view_as_real vstack _neg_view _pad_circular _unsafe_index_put _unsafe_view
    unsafe_chunk unsafe_split unsafe_split_with_sizes
"""

#: New tensors, copies and casts.
_CREATION = """
    arange bernoulli clone copy cpu detach empty empty_like eye full full_like lift_fresh_copy linspace new_empty new_full new_ones
    new_zeros one_hot ones ones_like rand rand_like randint randint_like randn randn_like scalar_tensor to tril_indices triu_indices
    type_as zeros zeros_like _to_copy _conj _cast_Float _cast_Double _cast_Half _cast_Int _cast_Long
    bartlett_window blackman_window hamming_window hann_window kaiser_window
"""

#: Products and layers.
_LAYERS = """
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d
    _adaptive_avg_pool2d _adaptive_avg_pool3d addbmm addmm addmv addr affine_grid_generator alpha_dropout avg_pool1d avg_pool2d
    avg_pool3d baddbmm batch_norm bilinear bmm cdist chain_matmul col2im conv1d conv2d conv3d conv_transpose1d conv_transpose2d
    conv_transpose3d convolution cross dot dropout einsum embedding feature_alpha_dropout feature_dropout ger grid_sampler
    grid_sampler_2d grid_sampler_3d group_norm gru gru_cell im2col inner instance_norm kron layer_norm linalg_cross linalg_matmul
    linalg_multi_dot linalg_vecdot linear lstm lstm_cell matmul max_pool1d max_pool1d_with_indices max_pool2d
    max_pool2d_with_indices max_pool3d max_pool3d_with_indices max_unpool2d max_unpool3d mm mv native_dropout native_group_norm
    native_layer_norm outer rms_norm rnn_relu rnn_relu_cell rnn_tanh rnn_tanh_cell scaled_dot_product_attention tensordot
    upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d
    upsample_trilinear3d _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
    _upsample_nearest_exact3d vdot _grouped_mm _weight_norm fake_quantize_per_tensor_affine fake_quantize_per_channel_affine
    binary_cross_entropy binary_cross_entropy_with_logits cross_entropy_loss huber_loss kl_div l1_loss mse_loss nll_loss nll_loss_nd
    smooth_l1_loss
"""

#: Transforms and dense linear algebra.
_TRANSFORMS = """
    det fft_fft fft_fft2 fft_fftfreq fft_fftn fft_fftshift fft_hfft fft_hfft2 fft_hfftn fft_ifft fft_ifft2 fft_ifftn
    fft_ifftshift fft_ihfft fft_ihfft2 fft_ihfftn fft_irfft fft_irfft2 fft_irfftn fft_rfft fft_rfft2 fft_rfftfreq
    fft_rfftn inverse istft linalg_cholesky linalg_det linalg_diagonal linalg_eigh linalg_eigvalsh linalg_inv
    linalg_inv_ex linalg_matrix_exp linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_triangular
    linalg_svd linalg_svdvals logdet matrix_exp pinverse slogdet stft
"""

_PARTS = (_POINTWISE, _REDUCTIONS, _PLACES, _CREATION, _LAYERS, _TRANSFORMS)

#: Facts of a tensor.
_FACTS = "is_floating_point is_complex numel size sym_numel sym_size sym_storage_offset sym_stride"

#: Written into a value that the graph made itself: see `fxprune.storage.graph.conditions`.
_WRITES = "add_ copy_ div_ fill_ index_copy_ index_fill_ index_put_ masked_fill_ mul_ scatter_ scatter_add_ sub_ zero_"

_POOLS = frozenset(
    [f"{kind}_pool{n}d{tail}" for n in (1, 2, 3) for kind, tail in (("avg", ""), ("max", ""), ("max", "_with_indices"))]
)

#: As much work as their operands have values times rows.
_CUBIC = """
    det inverse linalg_cholesky linalg_det linalg_eigh linalg_eigvalsh linalg_inv linalg_inv_ex linalg_matrix_exp linalg_matrix_norm
    linalg_norm linalg_pinv linalg_qr linalg_slogdet linalg_solve linalg_solve_triangular linalg_svd linalg_svdvals logdet matrix_exp
    nuclear_norm pinverse slogdet
"""

_LIBRARIES = "fxprune::mark torchvision::deform_conv2d transformers::grouped_mm_fallback"

#: Overloads that trust the shapes of their states, or the numbers of a packed batch; a file holds a layer that looks (`Recurrent`).
_TRUSTING = {("aten::lstm", "input"), *((f"aten::{name}", "data") for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"))}

#: What may be given a number that was read of a tensor.
_VALUED = frozenset(
    [
        *_POINTWISE.split(),
        *["full", "full_like", "new_full", "scalar_tensor", "masked_fill_", "fill_", "mul_", "add_", "sub_"],
    ]
)

_ADMITTED = frozenset([*(f"aten::{name}" for part in _PARTS for name in part.split()), *_LIBRARIES.split()])
_FACTUAL = frozenset(f"aten::{name}" for name in _FACTS.split())
_WRITING = frozenset(f"aten::{name}" for name in _WRITES.split())

#: Libraries whose operators a file may name; those that are not torch's own count once they are imported.
NAMESPACES = tuple(sorted({name.partition("::")[0] for name in _ADMITTED}))


def is_admitted(op: OpOverload) -> bool:
    """Returns whether a file may name an operator: it is on the list, and writes nothing, or only what it is handed first."""
    schema = op._schema
    if reads_number(op):
        return True
    tensors = bool(schema.returns) and all(str(r.type) in ("Tensor", "List[Tensor]") for r in schema.returns)
    if schema.is_mutable:
        return tensors and schema.name in _WRITING and _written(op) == [schema.arguments[0].name]
    if schema.name in _FACTUAL:
        return str(schema.arguments[0].type) == "Tensor"
    return (
        tensors and schema.name in _ADMITTED and (schema.name, schema.overload_name) not in _TRUSTING
    )  # not TorchScript's own overloads, of text and lists


def is_unchecked(op: object) -> bool:
    """Returns whether an operator trusts the shapes of its operands: they must be those of the model's own tensors."""
    return isinstance(op, OpOverload) and _packet(op) == "_weight_norm"


def reads_number(op: object) -> bool:
    """Returns whether an operator gives a tensor's only number to Python: it must be one that no size can be made of."""
    return isinstance(op, OpOverload) and op._schema.name == "aten::item"


def takes_number(op: object, argument: str) -> bool:
    """Returns whether a number that is read of a tensor may be an argument of an operator: as a value, of which no size is made."""
    if not isinstance(op, OpOverload) or not is_admitted(op) or _packet(op) not in _VALUED:
        return False
    return any(a.name == argument and "number" in str(a.type) for a in op._schema.arguments)


def takes_constants(op: object) -> bool:
    """Returns whether an operator trusts its numbers: they must be the same at every size."""
    return isinstance(op, OpOverload) and _packet(op) == "torchvision::deform_conv2d"


def writes(op: object) -> bool:
    """Returns whether an operator writes into what it is handed first."""
    return isinstance(op, OpOverload) and op._schema.is_mutable


def _written(op: OpOverload) -> list[str]:
    return [a.name for a in op._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def objection(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with the arguments of an admitted operator that does not check them itself, or None."""
    bound, condition = _bound(op, args, kwargs), _CONDITIONS.get(_packet(op))
    for a in op._schema.arguments:
        kind = next((cls for name, cls in _KINDS.items() if name in str(a.real_type)), None)
        if kind is not None and not isinstance(getattr(bound, a.name), (kind, type(None))):
            return f"{a.name}: expected a {kind.__name__}, got {getattr(bound, a.name)!r:.80}"
    return None if condition is None else condition(bound)


def largest(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Returns the largest result, ``[...]``, of an operator whose result's size depends on values; None if it has no bound."""
    bound = _LARGEST.get(_packet(op))
    return None if bound is None else bound(_bound(op, args, kwargs))


def parts(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """Returns how many tensors an operator that cuts one up returns; 1 for others."""
    count = _COUNTS.get(_packet(op))
    return 1 if count is None else count(_bound(op, args, kwargs))


def work(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> int:
    """Returns the operations of pooling, distances and factorisations, which `torch.utils.flop_counter` does not count."""
    name = _packet(op)
    values = sum(leaf.numel() for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))
    if name in _POOLS:
        return values * math.prod(_ints(_bound(op, args, kwargs).kernel_size))
    if name in _CUBIC.split():
        first = next(leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
        return 20 * max(values, first.numel()) * max(first.shape[-2:], default=1)
    return values * args[0].shape[-1] if name == "cdist" else 0


def _packet(op: OpOverload) -> str:
    return op._schema.name.removeprefix("aten::")


def _bound(op: OpOverload, args: Sequence[Any], kwargs: Mapping[str, Any]) -> SimpleNamespace:
    declared = op._schema.arguments
    defaults = {a.name: a.default_value for a in declared if a.has_default_value()}
    given = dict(zip((a.name for a in declared), args, strict=False))
    return SimpleNamespace(**{**dict.fromkeys(a.name for a in declared), **defaults, **given, **kwargs})


def _ints(value: Any) -> Sequence[int]:
    return value if isinstance(value, (list, tuple)) else [value]


def _rounded_division(a: SimpleNamespace) -> str | None:
    """The smallest whole number over -1 stops the process."""
    safe = not isinstance(a.other, Tensor) and a.other != -1
    if getattr(a, "rounding_mode", None) != "trunc" or safe or not all(map(_is_whole, (a.self, a.other))):
        return None
    return "expected whole numbers to be cut off after a division by a constant other than -1"


def _is_whole(value: Any) -> bool:
    if isinstance(value, Tensor):
        return not value.is_floating_point() and not value.is_complex()
    return isinstance(value, int)


def _norm_shapes(a: SimpleNamespace) -> str | None:
    """It reads and writes as many norms as the weight has rows, however many there are."""
    dim = a.dim if a.dim in (-1, 0) else a.dim % max(a.v.dim(), 1)
    expected = [] if dim == -1 else [size if axis == dim else 1 for axis, size in enumerate(a.v.shape)]
    fits = list(a.g.shape) == expected or (dim == -1 and a.g.numel() == 1)
    return None if fits else f"expected norms of shape {expected}, got {list(a.g.shape)}"


def _small_steps(a: SimpleNamespace) -> str | None:
    """It divides by its strides, and adds its paddings, whatever they are."""
    steps = (a.stride_h, a.stride_w, a.dilation_h, a.dilation_w, a.groups, a.offset_groups)
    sound = all(1 <= step <= 1 << 16 for step in steps) and all(0 <= pad <= 1 << 16 for pad in (a.pad_h, a.pad_w))
    return None if sound else "expected strides, dilations and groups from 1, and paddings from 0"


def _few_differences(a: SimpleNamespace) -> str | None:
    return None if a.n <= 16 else f"expected at most 16 differences, got {a.n}"


def _every_place(a: SimpleNamespace) -> Any:
    return a.self.new_empty([a.self.numel(), a.self.dim()], dtype=torch.int64)


def _every_value(a: SimpleNamespace) -> Any:
    return a.self.new_empty([torch.broadcast_shapes(a.self.shape, a.mask.shape).numel()])


def _every_row(a: SimpleNamespace) -> Any:
    """Each mask taken for the places of all its values."""
    indices: list[Tensor | None] = []
    for index in a.indices:
        masked = index is not None and index.dtype in (torch.bool, torch.uint8)
        indices += [index.new_zeros([index.numel()], dtype=torch.int64)] * index.dim() if masked else [index]
    return torch.ops.aten.index.Tensor(a.self, indices)


#: Numbers are taken for these without a look at what they stand for.
_KINDS = {
    "ScalarType": torch.dtype,
    "Layout": torch.layout,
    "MemoryFormat": torch.memory_format,
    "Device": torch.device,
}

_CONDITIONS: dict[str, Callable[[SimpleNamespace], str | None]] = {
    **dict.fromkeys(("div", "div_", "divide"), _rounded_division),
    "_weight_norm": _norm_shapes,
    "diff": _few_differences,
    "torchvision::deform_conv2d": _small_steps,
}
_LARGEST: dict[str, Callable[[SimpleNamespace], Any]] = {
    "nonzero": _every_place,
    "masked_select": _every_value,
    "index": _every_row,
}
_COUNTS: dict[str, Callable[[SimpleNamespace], int]] = {
    **dict.fromkeys(("split", "unsafe_split"), lambda a: _pieces(a)),
    **dict.fromkeys(("chunk", "unsafe_chunk"), lambda a: min(a.chunks, a.self.shape[a.dim])),
    "unbind": lambda a: a.self.shape[a.dim],
    "tensor_split": lambda a: a.sections if isinstance(getattr(a, "sections", None), int) else 1,
}


def _pieces(a: SimpleNamespace) -> int:
    size = getattr(a, "split_size", None)
    return -(-a.self.shape[a.dim] // size) if isinstance(size, int) and size > 0 else 1
