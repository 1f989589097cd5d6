"""No module at all: a function with its cache, over weights that it closes over."""

from parts import Core, length


def build():
    weights = Core()

    def gpt(ids, kv_cache=None):
        return weights.grown(ids, kv_cache, length(kv_cache))

    return gpt
