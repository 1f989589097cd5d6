"""Less than K and V may be kept: rows of which both are made anew in every step.

Proved by the model's own weights: a value that was attended to is what a matrix of the layer makes
of the row that is kept, with a norm before it or without. What only looks so is not taken for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm

from kvtrace.record.cache.own.find_holder import FoundHolder, described
from kvtrace.record.cache.own.holders import Holder

LARGEST = 1 << 27
"""Numbers of matrices that are tried in one look, a matrix as often as it is tried."""
_CLOSE, _CLOSE_HALF = 1e-4, 3e-2
_FEWEST = 4
"""Features of a value: fewer may agree by chance."""

Matrix = tuple[Tensor, Tensor | None]


def layer_with_weights(model: nn.Module, path: str) -> nn.Module:
    """The module of that path, or the nearest around it that has weights."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found = model.get_submodule(".".join(parts[:end]))
        except AttributeError:
            continue
        if any(one.dim() > 1 for one in found.parameters()):
            return found
    return model


@torch.no_grad()
def find_latent(
    keys: Tensor, values: Tensor, slots: Sequence[int], among: Sequence[Holder], layer: nn.Module
) -> list[FoundHolder]:
    """Who holds what keys and values were made of; empty: it isn't found.

    Args:
        keys: As attended to, [sequences, kv_heads, seq, key_dim].
        values: [sequences, kv_heads, seq, value_dim].
        slots: Rows to be found, of earlier steps; two are needed.
        among: In this order of preference.
        layer: The module whose weights may have made them.
    """
    if len(slots) < 2 or values.shape[3] < _FEWEST:
        return []
    two = [max(slots), min(slots)]
    wanted = values[0, 0, two]
    matrices, norms = _matrices(layer, wanted), _norms(layer)
    tried = 0
    for one in among:
        axis, rows = _rows(one.tensor, two, wanted.dtype)
        for matrix in matrices if rows is not None else ():
            tried += matrix[0].numel()
            if tried > LARGEST:
                return []
            if rows is not None and _makes(matrix, rows, wanted, norms):
                return [described(one, axis), *_beside(keys[0, 0, two], two, among, one)]
    return []


def _rows(tensor: Tensor, slots: Sequence[int], dtype: torch.dtype) -> tuple[int, Tensor | None]:
    """The axis along which a tensor may hold rows of the first sequence, and two of them."""
    longer = [n for n in range(tensor.dim() - 1) if tensor.shape[n] > max(slots)]
    if tensor.dtype != dtype or not longer:
        return -1, None
    axis = longer[-1]
    rows = tensor.movedim(axis, -2)[..., list(slots), :]
    return axis, rows.reshape(-1, len(slots), tensor.shape[-1])[0]


def _makes(matrix: Matrix, rows: Tensor, wanted: Tensor, norms: Sequence[Tensor]) -> bool:
    """Whether a matrix makes what is wanted of rows, or of the first or last of their features."""
    weight, bias = matrix
    width, given = weight.shape[1], rows.shape[1]
    if width > given:
        return False
    parts = [rows] if width == given else [rows[:, :width], rows[:, -width:]]
    return any(
        _stands_in(torch.nn.functional.linear(normed, weight, bias), wanted)
        for part in parts
        for normed in _normed(part, norms)
    )


def _normed(rows: Tensor, norms: Sequence[Tensor]) -> Iterator[Tensor]:
    """Rows as they are, and behind each norm of their width."""
    yield rows
    width = rows.shape[1]
    for weight in norms:
        if weight.shape[0] == width:
            yield torch.nn.functional.rms_norm(rows, (width,), weight, 1e-6)
            yield layer_norm(rows, (width,), weight, None, 1e-5)


def _stands_in(made: Tensor, wanted: Tensor) -> bool:
    """Whether wanted features lie side by side in what was made, at one place in both rows."""
    if made.shape[1] < wanted.shape[1]:
        return False
    stretches = made.unfold(1, wanted.shape[1], 1)
    close = _CLOSE if wanted.dtype == torch.float32 else _CLOSE_HALF
    limit = close * wanted.abs().amax(1).clamp(min=torch.finfo(torch.float32).tiny)
    apart = (stretches - wanted[:, None]).abs().amax(2)
    return bool((apart <= limit[:, None]).all(0).any())


def _matrices(layer: nn.Module, like: Tensor) -> list[Matrix]:
    """The weights of a layer that may make values, [features made, features given], with biases."""
    found: list[Matrix] = []
    tried = 0
    for module in layer.modules():
        bias = getattr(module, "bias", None)
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() < 2 or weight.dtype != like.dtype or weight.device != like.device:
                continue
            tried += weight.numel()
            if tried > LARGEST:
                return found
            rows = weight.detach().flatten(0, -2)
            fits = isinstance(bias, Tensor) and name == "weight" and bias.shape == rows.shape[:1]
            found.append((rows, bias if fits else None))
            if not isinstance(module, nn.Linear | nn.Embedding):
                found.append((weight.detach().flatten(1).t(), None))
    return found


def _norms(layer: nn.Module) -> list[Tensor]:
    return [one.detach() for one in layer.parameters() if one.dim() == 1]


def _beside(
    wanted: Tensor, slots: Sequence[int], among: Sequence[Holder], latent: Holder
) -> list[FoundHolder]:
    """What holds the features of the keys that no head has of its own: their rotary part.

    Args:
        wanted: Two keys, [2, key_dim].
        slots: Where they stand.
        among: In the order of preference.
        latent: What holds the rest.
    """
    for one in among:
        axis, rows = _rows(one.tensor, slots, wanted.dtype)
        if one is latent or rows is None or not 1 < rows.shape[1] < wanted.shape[1]:
            continue
        width = rows.shape[1]
        for part in (wanted[:, :width], wanted[:, -width:]):
            turned = part.square().sum(1).sqrt(), rows.square().sum(1).sqrt()
            if torch.equal(part, rows) or torch.allclose(*turned, rtol=_CLOSE):
                return [described(one, axis)]
    return []
