"""The kinds of divergence that kvtrace can name, and what usually causes each.

One table: reports, the screen and the documentation read it. What a signature looks like stands
with the check that finds it.
"""

from __future__ import annotations

from msgspec import Struct


class Kind(Struct, frozen=True):
    """A kind of divergence.

    Attributes:
        name: As printed: POSITION-ROPE.
        means: What is seen, in a clause.
        cause: What usually causes it, in a sentence.
        bug: False for true differences that are not a mistake in the cache code.
    """

    name: str
    means: str
    cause: str
    bug: bool = True


_TABLE = (
    Kind(
        "NONFINITE",
        "NaN or Inf among the numbers",
        "An overflow (fp16 scores), a row of the mask that hides everything, or broken weights.",
    ),
    Kind(
        "POSITION-ROPE",
        "queries are rotated to another position",
        "The position passed to the rotary embedding is not the cached length: an offset left "
        "out, counted twice, or off by one.",
    ),
    Kind(
        "POSITION-ROPE-K",
        "only the new keys are rotated to another position",
        "Queries and keys get their rotary tables from different positions.",
    ),
    Kind(
        "KEYS-NOT-ROTATED",
        "cached keys carry no rotation",
        "Keys are cached before the rotary embedding and never rotated when they are read.",
    ),
    Kind(
        "KEYS-ROTATED-AGAIN",
        "cached keys are rotated once more at every step",
        "The rotary embedding is applied to the whole cache instead of the new rows only.",
    ),
    Kind(
        "POSITION-EMBEDDING",
        "the input of the first layer differs and it is no rotation",
        "Absolute position embeddings restart at 0 in a decode step, another token was fed, or "
        "what mixes tokens before the attention (convolution, token shift) forgets earlier ones.",
    ),
    Kind(
        "HISTORY-LOST",
        "rows of earlier steps are not seen",
        "The cache is not passed on, or is replaced instead of appended to.",
    ),
    Kind("DUPLICATE-ROWS", "rows stand twice in the cache", "New rows are appended twice."),
    Kind(
        "EVICTED-EARLY",
        "older rows are gone too soon",
        "The cache is cropped, evicts rows by a rule, or its window is shorter than the model's.",
    ),
    Kind(
        "EVICTED-BY-CHOICE",
        "the cache drops rows of its own choice",
        "It keeps some by a rule: those it scores highest, as H2O and SnapKV do, or the first and "
        "the newest. A true property of the method: what it costs is what the rows would have "
        "added. What the steps from there on should be, no pass over all rows tells.",
        bug=False,
    ),
    Kind(
        "WINDOW",
        "rows older than the window are visible",
        "The sliding window is applied without the cache, but not with it.",
    ),
    Kind(
        "NEWEST-MISSING",
        "a query does not see its own key",
        "Attention reads the cache before the new row is written, or the mask is one too short.",
    ),
    Kind(
        "WRITE-POSITION",
        "the new row stands in another slot than its position",
        "The write index is off: it starts at the wrong length, or is not advanced.",
    ),
    Kind(
        "WRONG-SLOT",
        "a row is missing and another stands in its place",
        "The index of a ring buffer is off by one or wraps at the wrong length, or a table of "
        "blocks points at another block.",
    ),
    Kind(
        "ROW-OVERWRITTEN",
        "a cached row was overwritten and its token is lost",
        "The write index points at a row in use, or the buffer is smaller than the mask's window.",
    ),
    Kind(
        "ZERO-ROWS-VISIBLE",
        "unwritten (all-zero) rows are visible",
        "The mask covers the whole buffer instead of the rows written so far.",
    ),
    Kind(
        "ZERO-GAP",
        "all-zero rows stand inside the sequence",
        "The write index skips slots.",
    ),
    Kind("K-NOT-WRITTEN", "keys were never written", "Only the values reach the cache."),
    Kind("V-NOT-WRITTEN", "values were never written", "Only the keys reach the cache."),
    Kind(
        "KEYS-VALUES-SWAPPED",
        "keys hold the values",
        "The pair (key, value) is unpacked or stored in the other order.",
    ),
    Kind(
        "MISALIGNED",
        "keys and values of one slot belong to different tokens",
        "Keys and values are written or evicted with different indices.",
    ),
    Kind(
        "OLD-ROWS-SCALED",
        "cached rows are the right ones times a constant, or moved by one",
        "A scale or a zero point of a quantised cache is lost or applied twice, or old rows are "
        "normed once more.",
    ),
    Kind(
        "OLD-ROWS-CHANGED",
        "cached rows changed since the step before",
        "Something writes into the cache in place (an in-place operation on a view of it).",
    ),
    Kind(
        "MASK-FUTURE",
        "a query sees later tokens",
        "No causal mask is applied when the cache is in use.",
    ),
    Kind(
        "MASK-TOP-LEFT",
        "row i of a chunk sees only rows 0..i",
        "The causal mask is aligned top-left: it is not offset by the cached length.",
    ),
    Kind(
        "PAD-VISIBLE",
        "padding is visible",
        "The attention mask of the padded batch is not extended, or not used, in decode steps.",
    ),
    Kind(
        "MASK",
        "a query sees other rows than without the cache",
        "The mask is built from the wrong lengths.",
    ),
    Kind(
        "HEAD-MAP",
        "heads are in another order",
        "Grouped kv heads are expanded by repeat instead of repeat_interleave.",
    ),
    Kind(
        "HEAD-RESHAPE",
        "the same numbers in another layout",
        "view is used where transpose is needed between heads and positions.",
    ),
    Kind(
        "KV-HEADS",
        "the number of kv heads differs between the lanes",
        "The cache is allocated or repeated with the number of query heads.",
    ),
    Kind(
        "WRONG-LAYER",
        "rows belong to another layer",
        "Layers share one cache: a default argument, or the same layer index twice.",
    ),
    Kind(
        "WRONG-BATCH-ROW",
        "rows belong to another sequence of the batch",
        "The cache is not reordered with the beams, or indexed by the wrong row.",
    ),
    Kind(
        "STALE-CACHE",
        "attention reads rows of an earlier text",
        "The cache, or the part of it that holds an encoder's rows, is not reset between texts.",
    ),
    Kind(
        "CACHE-NOT-USED",
        "decode steps process all tokens again",
        "The cache is built but every step feeds the whole sequence: right result, no saving.",
    ),
    Kind(
        "DTYPE",
        "numbers are rounded to a smaller type",
        "The cache, or a part of one path (rotary tables, an autocast), is kept in a lower "
        "precision than the model calculates in.",
    ),
    Kind(
        "SCALE",
        "scores are the right ones times a constant",
        "The softmax scale differs between the paths.",
    ),
    Kind(
        "SCORE-NONLINEAR",
        "the order of the scores is kept, their differences are not",
        "A softcap, temperature, clamp or sink is used on one path only.",
    ),
    Kind(
        "SCORE-BIAS",
        "something else is added to the scores: a bias of other positions",
        "ALiBi or relative bias is computed without the cached length.",
    ),
    Kind(
        "WEIGHTS-NOT-NORMALISED",
        "attention weights do not sum to 1",
        "Dropout is active, or the softmax runs over another axis.",
    ),
    Kind(
        "LENGTH-DEPENDENT-POSITIONS",
        "positions are encoded with other frequencies",
        "Dynamic NTK, longrope or xPos: rows are encoded for the length that the text had when "
        "they were computed. A true property of the method, not of the cache code.",
        bug=False,
    ),
    Kind(
        "NOT-CAUSAL",
        "earlier rows depend on later tokens",
        "The model looks ahead (or normalises over the sequence), so it can't be cached exactly.",
    ),
    Kind(
        "TIE",
        "two choices are equal within rounding",
        "A router or a selection of slots was decided by the last bit: rounding, not the cache.",
        bug=False,
    ),
    Kind(
        "CONTENT",
        "rows match none of the right ones",
        "The rows are computed from something else: weights, norms or inputs differ.",
    ),
    Kind(
        "UPSTREAM",
        "the input of this layer differs and attention does not explain it",
        "An MLP, norm, residual or a stateful layer before it depends on the cache.",
    ),
    Kind(
        "UNKNOWN",
        "the lanes differ and no known signature fits",
        "Look at the tensors: the first difference is where the cursor is put.",
    ),
)

KINDS = {kind.name: kind for kind in _TABLE}

AFTERWARDS = Kind(
    "UPSTREAM",
    "the logits differ though all attention is equal",
    "What follows the last attention (an MLP, the final norm, the head) depends on the cache, or "
    "the logits of another row are given.",
)
"""What UPSTREAM means of logits."""

KEPT_ROUNDED = Kind(
    "DTYPE",
    "the cache keeps rounded rows",
    "It quantises what it is given, in every layer alike: what that alone does to the output is "
    "the price of it, not a mistake in the cache code.",
    bug=False,
)
"""What DTYPE means of a whole cache."""

UNLIKE_ITS_USE = (
    "The model does to several tokens what it does to a prompt, or to a single token. It is right "
    "as long as it is given one at a time once it holds rows, and wrong in chunks."
)
"""Why a model differs that was called otherwise than it was written for."""

VAGUE_ROWS = ("CONTENT", "OLD-ROWS-CHANGED", "UNKNOWN")
"""Names of rows that are wrong, which say nothing of why."""

VAGUE = (*VAGUE_ROWS, "UPSTREAM", "POSITION-EMBEDDING")
"""Names that say nothing of why."""
