"""Continuous batching: many requests packed in one row of tokens, their rows in one pool of blocks.

A packed forward is taken apart into one forward for each request, so that everything else in
`record` sees a request as it sees any other sequence. Where its rows lie in the pool is kept.
"""
