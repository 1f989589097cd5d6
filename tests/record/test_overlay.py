"""What is put in place of an attribute goes away again, in whatever order its owners end."""

import itertools

import pytest

from kvtrace.record.capture.overlay import Overlay


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
