"""What an operation is called and what it is for."""
from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch

_GROUPS = {
    "layer": "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d bilinear",
    "embedding": "embedding embedding_bag",
    "recurrent": "lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell",
    "attention": "scaled_dot_product_attention multi_head_attention_forward",
    "norm": "batch_norm layer_norm group_norm instance_norm rms_norm local_response_norm normalize weight_norm",
    "activation": "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish tanh sigmoid logsigmoid softplus softsign hardtanh "
                  "hardsigmoid hardswish softmax log_softmax softmin gumbel_softmax exp square glu threshold tanhshrink softshrink "
                  "hardshrink expit special_expit heaviside sign round floor ceil sin",
    "merge": "add sub mul div cat stack concat concatenate hstack vstack maximum minimum where lerp addcmul addcdiv rsub",
    "dropout": "dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout feature_dropout",
    "pool": "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d "
            "adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d max_pool1d_with_indices max_pool2d_with_indices lp_pool2d "
            "interpolate upsample pixel_shuffle fold unfold",
    "loss": "cross_entropy nll_loss mse_loss l1_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits kl_div "
            "poisson_nll_loss gaussian_nll_loss cosine_embedding_loss margin_ranking_loss hinge_embedding_loss multi_margin_loss "
            "multilabel_margin_loss soft_margin_loss multilabel_soft_margin_loss triplet_margin_loss triplet_margin_with_distance_loss "
            "ctc_loss cosine_similarity_loss",
    "matmul": "matmul mm bmm addmm baddbmm addbmm einsum mv addmv dot tensordot rmatmul chain_matmul linalg_multi_dot",
    "shape": "view reshape flatten unflatten permute transpose swapaxes swapdims t T mT movedim squeeze unsqueeze expand expand_as view_as "
             "reshape_as chunk split tensor_split unbind getitem select narrow contiguous clone to type float half double bfloat16 type_as "
             "roll flip repeat repeat_interleave tile pad index_select gather take_along_dim diagonal tril triu masked_fill setitem "
             "cpu cuda detach masked_select index_put rot90 alias broadcast_to movedim ravel pack_padded_sequence real imag",
    "reduce": "mean sum amax amin max min norm std var logsumexp prod cumsum median vector_norm argmax mean_dim sort topk any all",
}
CATEGORY: dict[str, str] = {name: group for group, names in _GROUPS.items() for name in names.split()}
_ALIASES = {"__matmul__": "matmul", "__rmatmul__": "matmul", "__add__": "add", "__radd__": "add", "__iadd__": "add", "__sub__": "sub",
            "__isub__": "sub", "__rsub__": "rsub", "__mul__": "mul", "__rmul__": "mul", "__imul__": "mul", "__truediv__": "div",
            "__rtruediv__": "div", "__itruediv__": "div", "__pow__": "pow", "__rpow__": "pow", "__getitem__": "getitem",
            "__setitem__": "setitem", "__neg__": "neg", "multiply": "mul", "divide": "div", "true_divide": "div", "subtract": "sub",
            "expit": "sigmoid", "special_expit": "sigmoid", "swapaxes": "transpose", "swapdims": "transpose", "concat": "cat",
            "concatenate": "cat", "rmatmul": "matmul", "fill_diagonal": "fill", "special_log_softmax": "log_softmax",
            "special_softmax": "softmax"}
#: Operations with a limited domain or range: where values stop being finite.
FRAGILE = frozenset({"log", "log2", "log10", "log1p", "sqrt", "rsqrt", "pow", "reciprocal", "logit", "acos", "asin", "atanh", "acosh", "norm", "std", "var",
                     "prod", "expm1", "exp2", "cosh", "sinh"})
#: Calls that make no value worth a node of the graph.
_IGNORED = frozenset({
    "size", "dim", "ndimension", "numel", "nelement", "stride", "storage_offset", "data_ptr", "item", "tolist", "numpy", "requires_grad_",
    "retain_grad", "register_hook", "is_floating_point", "is_complex", "is_contiguous", "element_size", "get_device", "storage",
    "untyped_storage", "__len__", "__bool__", "__int__", "__float__", "__index__", "__format__", "__repr__", "__hash__", "__contains__",
    "__iter__", "__array__", "__deepcopy__", "__reduce_ex__", "is_set_to", "is_same_size", "type_", "share_memory_", "backward", "zero_",
    "__set__", "__delete__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__", "eq", "ne", "lt", "le", "gt", "ge", "isnan", "isinf",
    "isfinite", "equal", "allclose", "argmax", "argmin", "is_shared", "is_pinned", "has_names", "names", "refine_names", "has_torch_function",
    "dtype", "new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "zeros_like", "ones_like", "empty_like", "full_like", "rand_like",
    "randn_like", "randint_like", "broadcast_tensors", "result_type", "bool", "long", "int",
})
LEAVES = {"numpy": "numpy", "__array__": "numpy", "tolist": "tolist"}       # a tensor's values go where torch does not see them
RETURNS = frozenset({"tensor", "as_tensor", "asarray"})                     # and come back
_DISCRETE = frozenset({"argmax", "argmin", "long", "int", "bool", "eq", "ne", "lt", "le", "gt", "ge"})


@functools.lru_cache(maxsize=4096)
def operation_name(func: Callable[..., Any]) -> tuple[str, bool] | None:
    """(name, in place) of a torch function as a user would say it; None when it makes no value worth recording."""
    name = getattr(func, "__name__", "")
    if name == "__get__":
        name = getattr(getattr(func, "__self__", None), "__name__", "")
        return (name, False) if name in ("T", "mT", "H", "mH", "real", "imag") else None
    if name in _IGNORED or not name:
        return None
    alias = _ALIASES.get(name)
    if alias is not None:
        return alias, name.startswith("__i") and name != "__invert__"
    if name.startswith("__"):
        return None
    inplace = name.endswith("_") and not name.endswith("__")
    name = name.rstrip("_").lstrip("_")
    return _ALIASES.get(name, name), inplace


@functools.lru_cache(maxsize=4096)
def hiding_name(func: Callable[..., Any]) -> str:
    """Name of a call that makes no operation but a value without gradient: .data, whole numbers, truth values, numpy; empty for any other."""
    name = getattr(func, "__name__", "")
    if name in LEAVES:
        return LEAVES[name]
    if name == "__get__":
        return "data" if getattr(getattr(func, "__self__", None), "__name__", "") == "data" else ""
    return name.strip("_") if name.strip("_") in _DISCRETE else ""


@functools.lru_cache(maxsize=4096)
def parameters_of(func: Callable[..., Any]) -> tuple[str, ...]:
    """Names of the positional parameters of a torch function, () when they can't be known."""
    try:
        return tuple(inspect.signature(func).parameters)
    except (TypeError, ValueError):
        return _BUILTIN.get(getattr(func, "__name__", "").rstrip("_"), ())


_BUILTIN = {"softmax": ("input", "dim"), "log_softmax": ("input", "dim"), "dropout": ("input", "p", "training"),
            "leaky_relu": ("input", "negative_slope"), "batch_norm": ("input", "weight", "bias", "running_mean", "running_var", "training"),
            "cat": ("tensors", "dim"), "stack": ("tensors", "dim"), "transpose": ("input", "dim0", "dim1"), "flatten": ("input", "start_dim"),
            "mean": ("input", "dim"), "sum": ("input", "dim"), "gelu": ("input", "approximate"), "conv2d": ("input", "weight", "bias", "stride"),
            "lstm": ("input", "hx", "flat_weights", "bias", "num_layers", "dropout", "training", "bidirectional", "batch_first"),
            "gru": ("input", "hx", "flat_weights", "bias", "num_layers", "dropout", "training", "bidirectional", "batch_first"),
            "rnn_tanh": ("input", "hx", "flat_weights", "bias", "num_layers", "dropout", "training", "bidirectional", "batch_first"),
            "rnn_relu": ("input", "hx", "flat_weights", "bias", "num_layers", "dropout", "training", "bidirectional", "batch_first"),
            "scaled_dot_product_attention": ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")}


def plain_attributes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments that are plain values (numbers, strings, tuples of numbers), by name."""
    names = parameters_of(func)
    found = {}
    for index, value in enumerate(args):
        if isinstance(value, (bool, int, float, str)) or isinstance(value, tuple) and len(value) <= 8 and all(isinstance(v, (int, float)) for v in value):
            found[names[index] if index < len(names) else f"arg{index}"] = value
    found.update({k: v for k, v in kwargs.items() if isinstance(v, (bool, int, float, str))})
    return found


@functools.cache
def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def refined(category: str, op: str, used: int, others: int) -> str:
    """Category where it depends on what the operands are: how many parameters (`used`), how many other tensors."""
    if category == "matmul":
        return "layer" if used else "other"
    if category == "merge" and (others < 2 or op in ("lerp", "where") and used):
        return "scale" if op in ("add", "sub", "mul", "div", "rsub") else "shape"
    return category
