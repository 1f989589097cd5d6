"""What is put in place of an attribute goes away again, in whatever order its owners end."""

import itertools
from types import ModuleType

import pytest

from kvtrace.record.capture.replaced.overlay import Overlay, Overlays


class Base:
    def say(self):
        return "base"


def _plus(word):
    def make(overlay):
        def say(self):
            return overlay.under(self) + ("" if overlay.over else f" {word}")

        return say

    return make


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_overlays_end_in_any_order_and_leave_the_original(order):
    class Kind(Base):
        def say(self):
            return "own"

    own = Kind.say
    overlays = [Overlay(Kind, "say", _plus(word)) for word in "abc"]
    left = set("abc")
    for place in order:
        overlays[place].stop()
        left.discard("abc"[place])
        assert Kind().say().split() == ["own", *sorted(left)]
    assert Kind.say is own


def test_what_the_class_did_not_have_itself_is_taken_away_again():
    class Kind(Base):
        pass

    def make(overlay):
        assert overlay.under is None
        return lambda self: "mine"

    overlay = Overlay(Kind, "say", make)
    assert Kind().say() == "mine"
    overlay.stop()
    assert "say" not in vars(Kind)
    assert Kind().say() == "base"


def test_what_somebody_else_put_upon_it_stays_and_reaches_the_original():
    class Kind(Base):
        def say(self):
            return "own"

    overlay = Overlay(Kind, "say", _plus("mine"))
    below = Kind.say
    Kind.say = lambda self: below(self) + " theirs"
    assert Kind().say() == "own mine theirs"
    overlay.stop()
    assert Kind().say() == "own theirs"


def test_an_object_gets_its_own_attribute_back():
    one, other = Base(), Base()
    one.say = lambda: "mine"
    own = one.say
    overlay = Overlay(one, "say", lambda overlay: lambda: f"{overlay.under()} and ours")
    assert (one.say(), other.say()) == ("mine and ours", "base")
    overlay.stop()
    assert one.say is own


def _module():
    found = ModuleType("found")
    found.say = found.also = lambda: "own"
    return found


def _around(word):
    def make(under):
        return lambda: f"{under()} {word}"

    return make


def test_a_function_with_two_names_is_given_back_under_both():
    module = _module()
    own = module.say
    placed = Overlays([(module, "say"), (module, "also"), (module, "gone")], _around("a"))
    for _ in range(3):
        placed.start()
        assert (module.say(), module.also()) == ("own a", "own a")
        placed.stop()
        assert module.say is module.also is own
        assert not hasattr(module, "gone")


def test_what_takes_the_place_is_made_once_and_anew_where_the_function_changes():
    module, made = _module(), []
    own = module.say
    placed = Overlays([(module, "say")], lambda under: made.append(under) or _around("a")(under))
    for _ in range(3):
        placed.start()
        placed.stop()
    assert made == [own]
    module.say = lambda: "other"
    placed.start()
    assert module.say() == "other a"
    placed.stop()
    assert module.say() == "other"


@pytest.mark.parametrize("first", [0, 1])
def test_functions_replaced_twice_at_once_come_back_in_either_order(first):
    module = _module()
    own = module.say
    both = [Overlays([(module, "say")], _around(word)) for word in "ab"]
    for _ in range(2):
        for one in both:
            one.start()
        assert module.say() == "own a b"
        both[first].stop()
        both[1 - first].stop()
        assert module.say is own
