"""Letters of axes: products however spelled, and views that can or can't be followed."""

import pytest
import torch

from kvtrace.record.flow.marks.axes import Letters
from kvtrace.record.flow.marks.contraction import of_einsum, of_matmul, of_tensordot
from kvtrace.record.flow.marks.views import VIEWS, attribute, elementwise


def named(*sizes):
    """(letters, an axis of each size, a tensor of that shape)."""
    letters = Letters()
    axes = tuple(letters.new(size) for size in sizes)
    return letters, axes, torch.zeros(sizes)


def test_a_split_letter_becomes_its_parts_outermost_first():
    letters, (merged, rows), _ = named(6, 5)
    axes = letters.reshape((merged, rows), (2, 3, 5))
    assert [letters.sizes[axis] for axis in axes] == [2, 3, 5]
    assert letters.whole(merged) == axes[0] + axes[1]


def test_merging_and_splitting_back_gives_the_same_letters():
    letters, axes, _ = named(2, 3, 5)
    merged = letters.reshape(axes, (6, 5))
    assert merged == (axes[0] + axes[1], axes[2])
    assert letters.reshape(merged, (2, 3, 5)) == axes


def test_a_reshape_across_letters_loses_the_names():
    letters, axes, _ = named(4, 6)
    assert letters.reshape(axes, (3, 8)) is None


def test_a_slice_is_followed_only_back_to_what_was_lengthened():
    letters, (axis,), _ = named(5)
    longer = letters.lengthened(axis, before=1, size=6)
    assert letters.cut(longer, 1, 5) == axis
    assert letters.cut(longer, 0, 5) is None
    assert letters.cut(axis, 0, 5) == axis
    assert letters.cut(axis, 0, 4) is None


@pytest.mark.parametrize(
    ("name", "arguments", "places"),
    [
        ("transpose", (1, 2), (0, 2, 1, 3)),
        ("transpose", (-1, -2), (0, 1, 3, 2)),
        ("permute", (3, 0, 2, 1), (3, 0, 2, 1)),
        ("permute", ([0, 2, 3, 1],), (0, 2, 3, 1)),
        ("movedim", (1, -1), (0, 2, 3, 1)),
        ("movedim", ((0, 1), (2, 3)), (2, 3, 0, 1)),
        ("t", (), None),
    ],
)
def test_views_carry_their_axes_along(name, arguments, places):
    letters, axes, x = named(2, 3, 5, 7)
    if places is None:
        letters, axes, x = named(2, 3)
        places = (1, 0)
    out = getattr(x, name)(*arguments)
    found = VIEWS[name](axes, letters, x, out, (arguments, {}))
    assert found == tuple(axes[place] for place in places)
    assert [letters.sizes[axis] for axis in found] == list(out.shape)


def test_indexing_with_none_ellipsis_and_whole_numbers_is_followed():
    letters, axes, x = named(2, 1, 5)

    def indexed(index):
        return VIEWS["__getitem__"](axes, letters, x, x[index], ((index,), {}))

    assert indexed((..., None)) == (*axes, "")
    assert indexed((slice(None), 0)) == (axes[0], axes[2])
    assert indexed((None, slice(0, 2))) == ("", *axes)
    assert indexed((slice(0, 1),)) is None
    assert indexed((0,)) is None


def test_transposed_attributes_are_views():
    _, axes, x = named(2, 3, 5)
    assert attribute("mT", axes, x) == (axes[0], axes[2], axes[1])
    assert attribute("T", axes, x) == axes[::-1]
    assert attribute("shape", axes, x) is None


def test_a_broadcast_adds_axes_in_front_and_a_reduction_loses_them():
    letters, axes, x = named(3, 1)
    found = elementwise(axes, letters, x, torch.zeros(2, 3, 4))
    assert found[1] == axes[0]
    assert [letters.sizes[axis] for axis in found] == [2, 3, 4]
    assert elementwise(axes, letters, x, torch.zeros(3)) is None


def recomputed(product):
    """The product by its letters alone."""
    equation = f"{product.left_axes},{product.right_axes}->{product.out_axes}"
    return torch.einsum(equation, product.left, product.right)


@pytest.mark.parametrize(
    ("left", "right"),
    [((2, 3, 4), (2, 4, 5)), ((4, 5), (2, 5, 3)), ((2, 3, 4, 5), (5, 6)), ((4,), (2, 4, 3))],
)
def test_the_letters_of_a_matmul_multiply_to_the_same(left, right):
    a, b = torch.randn(left), torch.randn(right)
    torch.testing.assert_close(recomputed(of_matmul(a, b, a @ b)), a @ b)


@pytest.mark.parametrize("equation", ["bhid,bhjd->bhij", "bhid,bhjd", "...id,...jd->...ij"])
def test_the_letters_of_an_einsum_multiply_to_the_same(equation):
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 6, 5)
    out = torch.einsum(equation, a, b)
    product = of_einsum(equation, a, b, out)
    torch.testing.assert_close(recomputed(product), out)
    # without an arrow, letters that stand in both operands are summed over: b, h and d
    assert len(product.contracted) == (1 if "->" in equation else 3)


def test_a_diagonal_is_no_product_of_two():
    a = torch.randn(3, 3)
    assert of_einsum("ii,ij->j", a, a, torch.einsum("ii,ij->j", a, a)) is None


@pytest.mark.parametrize("axes", [1, ([2], [0]), ([2, 1], [0, 2])])
def test_the_letters_of_a_tensordot_multiply_to_the_same(axes):
    a, b = torch.randn(2, 5, 4), torch.randn(4, 3, 5)
    out = torch.tensordot(a, b, dims=axes)
    torch.testing.assert_close(recomputed(of_tensordot(a, b, out, axes)), out)
