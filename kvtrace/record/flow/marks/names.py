"""Names of torch functions by what they do to scores and weights on their way.

Functions are told apart by `__name__`: `torch.softmax`, `Tensor.softmax` and `F.softmax` share it.
"""

from __future__ import annotations

MATMUL = ("matmul", "__matmul__", "bmm", "mm", "mv", "linalg_matmul")
MULTIPLY = ("mul", "mul_", "multiply", "multiply_", "__mul__", "__rmul__", "__imul__")
DIVIDE = (
    *("div", "div_", "divide", "divide_", "true_divide", "true_divide_"),
    *("__truediv__", "__itruediv__", "__div__", "__idiv__"),
)
ADD = ("add", "add_", "__add__", "__radd__", "__iadd__")
SUBTRACT = ("sub", "sub_", "subtract", "subtract_", "__sub__", "__isub__")
REVERSED_SUBTRACT = ("rsub", "__rsub__")
SOFTMAX = ("softmax", "special_softmax", "_softmax")
SIGMOID = ("sigmoid", "sigmoid_", "special_expit")
EXP = ("exp", "exp_", "special_exp")
TANH = ("tanh", "tanh_")
CONCATENATE = ("cat", "concat", "concatenate")
RANDOM = ("dropout", "alpha_dropout", "feature_alpha_dropout", "dropout_")
STORE = ("__setitem__", "index_copy_", "index_put_", "copy_", "scatter_", "slice_scatter")
COPIES = (
    *("to", "float", "half", "bfloat16", "double", "type", "type_as", "clone", "contiguous"),
    *("detach", "detach_", "requires_grad_", "cpu", "cuda", "alias", "_to_copy"),
)
"""Same numbers, maybe in another dtype or place."""

NOT_FOLLOWED = frozenset(
    (
        *("size", "dim", "numel", "stride", "data_ptr", "is_contiguous", "item", "tolist"),
        *("storage_offset", "untyped_storage", "numpy", "__len__", "__bool__", "__repr__"),
        *("__format__", "is_floating_point", "is_complex", "element_size", "get_device"),
        *(
            "linear",
            "layer_norm",
            "rms_norm",
            "embedding",
            "addmm",
            "conv1d",
            "conv2d",
            "group_norm",
        ),
        *(
            "sum",
            "mean",
            "amax",
            "amin",
            "max",
            "min",
            "argmax",
            "argmin",
            "topk",
            "sort",
            "argsort",
        ),
        *("norm", "std", "var", "any", "all", "logsumexp", "multinomial", "cumsum", "prod"),
        *("isnan", "isinf", "isfinite", "gt", "lt", "ge", "le", "eq", "ne", "__gt__", "__lt__"),
        *("__ge__", "__le__", "__eq__", "__ne__", "equal", "allclose", "isclose"),
        *("ones_like", "zeros_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_tensor", "cross_entropy"),
        *("backward", "register_hook", "retain_grad", "relu", "relu_"),
        *("softplus", "elu", "gelu", "silu", "abs", "square", "pow", "log_softmax", "log"),
    )
)
"""Their result is neither scores nor weights any more, or no tensor at all."""

KEEPS_PARAMETER = frozenset(
    (
        *("__getitem__", "index_select", "view", "reshape", "transpose", "permute", "t", "repeat"),
        *(
            "expand",
            "unsqueeze",
            "squeeze",
            "chunk",
            "unbind",
            "split",
            "mul",
            "div",
            "add",
            "flatten",
        ),
        *("repeat_interleave", "normalize", "softmax", "cat", "stack", "matmul", "mm", "unflatten"),
        *("exp", "sigmoid", "tanh", "narrow", "select", "dropout", "softplus", "neg", "sub"),
        *COPIES,
    )
)
"""A tensor made of parameters alone by these is as good as a parameter."""
