"""Floor 2: questions about a trace, as pure functions; one question a file.

Every function takes a Trace and where to look (step, layer, head, sequence, query) and answers
with plain immutable values. It knows no files, no models and no screens.
"""
