"""Time is the first dimension, [T, batch], as torch's own transformers have it; no cache."""

from parts import Core


class TimeFirst(Core):
    def forward(self, src):
        return self.full(src.transpose(0, 1)).transpose(0, 1)


def build():
    return TimeFirst()
