"""One attention call as it was seen, whatever mechanism saw it. The seam inside `record`.

Capture (transformers' interface, SDPA, data flow) makes these; bookkeeping, cost, self-check and
lanes read them. Tensors are references into the running forward: copy before it goes on if the
model may change them in place.
"""

from __future__ import annotations

from msgspec import Struct
from torch import Tensor


class AttentionCall(Struct, frozen=True):
    """What one attention consumed and made.

    Attributes:
        module: Path of the module as the model calls it.
        call: Number of earlier calls of this module in the same forward.
        layer: Layer of the model it belongs to.
        kind: "self", "cross" or "encoder".
        queries: [sequences, heads, new, key_dim], after position encoding.
        keys: [sequences, kv_heads, seq, key_dim], all rows attended to, heads not repeated.
        values: [sequences, kv_heads, seq, value_dim].
        output: [sequences, heads, new, value_dim], before the output projection.
        scale: Factor on q·kᵀ.
        softcap: Cap on the scores, where used.
        causal: Query i sees rows up to i + seq - new; added to `visible`.
        visible: Bool, broadcasts to [sequences, heads, new, seq]; None: everything.
        bias: Additive on the scores, same shape; None without one. Never holds the mask.
        sinks: Logit of one extra column per head, [heads]; None without one.
        window: Sliding window in rows, where the module declares one.
        level: 1 attention interface, 2 SDPA, 3 softmax pattern, 4 explicit.
        code: "file.py:line" of the attention in the model's own code, where known.
        scores_code: The same of its scores, where that is another line.
        rule: How scores become weights: "softmax" or "sigmoid".
        mixes: The model multiplied values for it; False: its weights were added to another's first.
    """

    module: str
    call: int
    layer: int
    kind: str
    queries: Tensor
    keys: Tensor
    values: Tensor
    output: Tensor
    scale: float
    softcap: float | None = None
    causal: bool = False
    visible: Tensor | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    window: int | None = None
    level: int = 1
    code: str = ""
    scores_code: str = ""
    rule: str = "softmax"
    mixes: bool = True
