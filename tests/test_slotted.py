"""Our dataclasses are those of the standard library, but for when their methods are made."""

import copy
import dataclasses
import pickle
from dataclasses import field

import pytest

from kvtrace.slotted import dataclass


@dataclass(frozen=True, slots=True)
class Row:
    """A value."""

    token: int
    place: str = "here"
    marks: list = field(default_factory=list)
    near: object = field(default=None, compare=False, repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Usual:
    """The same, of the standard library."""

    token: int
    place: str = "here"
    marks: list = field(default_factory=list)
    near: object = field(default=None, compare=False, repr=False)


@dataclass(slots=True)
class Book:
    """Something that changes."""

    size: int
    pages: int = field(init=False)

    def __post_init__(self):
        if self.size < 0:
            raise ValueError("less than nothing")
        self.pages = 2 * self.size


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """One of a kind."""

    name: str


@pytest.mark.parametrize(
    ("given", "named"), [((1,), {}), ((1, "there", [2]), {"near": 3}), ((), {"token": 4})]
)
def test_what_is_given_and_what_is_not_goes_where_the_standard_library_puts_it(given, named):
    ours, usual = Row(*given, **named), Usual(*given, **named)
    assert dataclasses.asdict(ours) == dataclasses.asdict(usual)
    assert repr(ours) == repr(usual).replace("Usual", "Row")
    assert [f.name for f in dataclasses.fields(ours)] == [f.name for f in dataclasses.fields(usual)]
    assert Row.__match_args__ == Usual.__match_args__
    assert Row.__slots__ == Usual.__slots__


@pytest.mark.parametrize(("given", "named"), [((), {}), ((1, 2, 3, 4, 5), {}), ((1,), {"x": 1})])
def test_arguments_that_do_not_fit_are_refused_each_time(given, named):
    for _ in range(2):
        with pytest.raises(TypeError):
            Row(*given, **named)


def test_a_factory_makes_each_instance_its_own():
    assert Row(1).marks is not Row(1).marks


def test_instances_are_equal_by_the_fields_that_count():
    assert Row(1, near=2) == Row(1, near=3)
    assert Row(1) != Row(2)
    assert Row(1) != Usual(1)
    assert Book(1) == Book(1)
    assert Book(1) != Book(2)
    assert Place("a") != Place("a")


def test_frozen_ones_hash_by_what_makes_them_equal_and_changing_ones_do_not():
    assert hash(Row(1, marks=(), near=2)) == hash(Row(1, marks=(), near=3))
    assert len({Place("a"), Place("a")}) == 2
    with pytest.raises(TypeError, match="unhashable"):
        hash(Book(1))


def test_frozen_ones_can_not_be_changed_and_others_can():
    row, book = Row(1), Book(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'token'"):
        row.token = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'token'"):
        del row.token
    book.size = 3
    assert (book.size, book.pages) == (3, 2)
    with pytest.raises(AttributeError):
        book.other = 1


def test_what_follows_making_one_is_done_each_time():
    with pytest.raises(ValueError, match="less than nothing"):
        Book(-1)
    assert [Book(size).pages for size in (1, 2)] == [2, 4]
    with pytest.raises(ValueError, match="less than nothing"):
        dataclasses.replace(Book(1), size=-1)


def test_values_can_be_copied_pickled_and_replaced():
    row = Row(1, "there", [2], near=3)
    for other in (copy.copy(row), copy.deepcopy(row), pickle.loads(pickle.dumps(row))):
        assert dataclasses.asdict(other) == dataclasses.asdict(row)
    assert dataclasses.replace(row, place="gone") == Row(1, "gone", [2])


def test_a_class_without_slots_is_left_to_the_standard_library():
    with pytest.raises(TypeError, match="standard library"):
        dataclass(slots=False, frozen=True)
