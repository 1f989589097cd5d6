"""What is true of a whole trace: the model, where it attends, what it caches, how it was run."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum

from msgspec import Struct, field

from kvtrace.trace.dtypes import itemsize

FORMAT_VERSION = 1


class Tensor(IntEnum):
    """The four recorded tensors of an attention call, in the order they are stored."""

    QUERIES = 0
    KEYS = 1
    VALUES = 2
    OUTPUT = 3


class ModelCard(Struct, frozen=True, omit_defaults=True):
    """The model that was watched.

    Attributes:
        name: As the user called it; never an absolute path.
        class_name: Python class of the model.
        architecture: Model type of its config ("gpt2", "llama"), empty if there is none.
        weights: What pins the weights: a hub commit, a hash, or empty.
        dtype: Of the parameters.
        products: What factors of float32 are rounded to where it runs, "TF32" or "bfloat16"; empty:
            to nothing else.
        attention: Attention implementation ("sdpa", "eager", …).
        device: "cpu", "cuda:0", …
        parameter_count: Number of parameters, shared ones once.
        weight_bytes: Bytes of the parameters, shared ones once.
        vocab_size: Rows of the output head; 0 when unknown.
        context_length: Positions the model was made for; 0 when unbounded or unknown.
        tokenizer: What turned text into ids ("gpt2 BPE", "bytes", …).
        banner: Something every viewer must see, such as weights that were missing; else empty.
    """

    name: str
    class_name: str
    architecture: str = ""
    weights: str = ""
    dtype: str = "float32"
    products: str = ""
    attention: str = ""
    device: str = "cpu"
    parameter_count: int = 0
    weight_bytes: int = 0
    vocab_size: int = 0
    context_length: int = 0
    tokenizer: str = ""
    banner: str = ""


class CacheLayer(Struct, frozen=True, omit_defaults=True):
    """One set of K,V rows ("cells") that attention reads.

    Attributes:
        index: Place in `Meta.cache_layers`.
        layer: The cache's own layer index, or -1 when the rows are not held in a cache.
        kind: Class of the cache layer in plain words: "dynamic", "sliding", "static",
            "quantised", "cross", "latent" (MLA: keys hold the latent, values the rotary key, which
            has no features where positions are not encoded),
            "state" (recurrent: constant in length), or "derived" (rows made anew from another
            cache layer each step, or copied from it) and "uncached" (never kept); the last two
            hold no memory.
        num_kv_heads, key_dim, value_dim: Shape of a row: keys [kv_heads, seq, key_dim].
        dtype: Of the stored rows; see `dtypes`.
        window: Rows a sliding layer keeps in view, None if all.
        capacity: Slots allocated up front (static), None if it grows.
        state_bytes: Bytes of a recurrent state, constant in length.
        first_kv_head, all_kv_heads: Where its kv heads begin among those of the whole model, and
            how many those are, where several processes share them; 0, 0: all are here.
        where: What of the model's own holds the rows, as its code calls it, with the shape; empty
            where that is not known.
        remark: What else must be known to read its rows right; a sentence, or empty.
        shared_dim: Features of a value row that its key row has too, held once (absorbed MLA:
            the keys are latent and rotary key, the values the latent).
        block_slots: Slots of a block, where the requests of an engine share one pool of blocks;
            `capacity` is then that of the pool. 0: there is none.
        latent_bytes: What is kept of each row, where K and V are made anew of it in every step:
            latents, the layer's input. 0: K and V themselves are kept.
    """

    index: int
    layer: int
    kind: str
    num_kv_heads: int
    key_dim: int
    value_dim: int
    dtype: str = "float32"
    window: int | None = None
    capacity: int | None = None
    state_bytes: int = 0
    first_kv_head: int = 0
    all_kv_heads: int = 0
    where: str = ""
    remark: str = ""
    shared_dim: int = 0
    block_slots: int = 0
    latent_bytes: int = 0

    def dim(self, tensor: Tensor) -> int:
        """Features of a row of K or V."""
        return self.key_dim if tensor is Tensor.KEYS else self.value_dim

    @property
    def held_dim(self) -> int:
        """Features of a row of K and V together, as far as they are held apart."""
        return self.key_dim + self.value_dim - self.shared_dim

    @property
    def row_bytes(self) -> int:
        """Bytes that are kept of one row, all kv heads."""
        return self.latent_bytes or self.num_kv_heads * self.held_dim * itemsize(self.dtype)

    @property
    def held(self) -> bool:
        """Whether its rows occupy cache memory."""
        return self.kind not in ("derived", "uncached")

    @property
    def absorbed(self) -> bool:
        """Whether attention reads the latents themselves, with a rotary key behind each.

        Rows whose values are all of their keys are no sign of it: shared kv heads may do that too.
        """
        return self.num_kv_heads == 1 and 0 < self.shared_dim < self.key_dim

    @property
    def latents(self) -> bool:
        """Whether its rows are latents of multi-head latent attention."""
        return self.kind == "latent" or self.absorbed


class Site(Struct, frozen=True, omit_defaults=True):
    """One place that attends: the n-th attention call of a module within a forward.

    Attributes:
        index: Place in `Meta.sites`; the row of the layer × head grid.
        module: Path of the module, as the model calls it.
        call: Number of earlier calls of this module in the same forward.
        layer: Layer of the model it belongs to.
        kind: "self", "cross" or "encoder".
        num_heads, num_kv_heads: Query heads, and the kv heads they share.
        key_dim, value_dim: Features per head of q and k, and of v and output.
        scale: Factor on q·k.
        softcap: scores = softcap · tanh(scores / softcap), where used.
        window: Sliding window in rows, where used.
        sinks: Learned sink logit per head, where used; rows of weights then sum to less than 1.
        reads: Index of the cache layer whose rows it attends to.
        source: "cache", "derived" (expanded from cached latents), "shared" (another site's rows)
            or "uncached".
        shared_from: Site that wrote the rows, when shared.
        level: What saw it: 1 attention interface, 2 SDPA, 3 softmax pattern, 4 explicit.
        dtype: Of queries and output.
        code: "file.py:line" of the attention in the model's own code, where known.
        scores_code: The same of its scores, q·kᵀ, where that is another line.
        first_head, all_heads: Where its heads begin among those of the whole model, and how many
            those are, where several processes share them; 0, 0: all are here.
        rule: How scores become weights: "softmax" over the rows, or "sigmoid" of each alone.
    """

    index: int
    module: str
    call: int
    layer: int
    kind: str
    num_heads: int
    num_kv_heads: int
    key_dim: int
    value_dim: int
    scale: float
    reads: int
    softcap: float | None = None
    window: int | None = None
    sinks: tuple[float, ...] = ()
    source: str = "cache"
    shared_from: int | None = None
    level: int = 1
    dtype: str = "float32"
    code: str = ""
    scores_code: str = ""
    first_head: int = 0
    all_heads: int = 0
    rule: str = "softmax"

    @property
    def lines(self) -> str:
        """Where it is written: "model.py:33", or "model.py:28 scores, :33 output"."""
        if not self.scores_code:
            return self.code
        name, _, line = self.code.rpartition(":")
        same = self.scores_code.rpartition(":")[0] == name
        return f"{self.scores_code} scores, {f':{line}' if same else self.code} output"

    def kv_head(self, head: int) -> int:
        """The kv head that query head `head` reads."""
        return head // (self.num_heads // self.num_kv_heads)

    def heads(self, tensor: Tensor) -> int:
        """Heads of one of its tensors."""
        kv = tensor in (Tensor.KEYS, Tensor.VALUES)
        return self.num_kv_heads if kv else self.num_heads

    def dim(self, tensor: Tensor) -> int:
        """Features per head of one of its tensors."""
        return self.key_dim if tensor in (Tensor.QUERIES, Tensor.KEYS) else self.value_dim


class Lane(Struct, frozen=True, omit_defaults=True):
    """Another way of computing the same tokens, compared with the cached one.

    Attributes:
        name: "recomputed" (no cache) or "referee" (no cache, fp32).
        mode: "once" (one pass over the final sequence) or "each" (a pass per step).
        dtype: It was computed in.
        tolerance: Relative max|Δ| that counts as rounding.
        reason: Why that tolerance.
        reference: "bare" (called with the tokens alone: independent of the model's cache code) or
            "replayed" (original arguments extended: shares that code).
    """

    name: str
    mode: str
    dtype: str
    tolerance: float
    reason: str = ""
    reference: str = "bare"


class Sampling(Struct, frozen=True, omit_defaults=True):
    """How the next token was chosen.

    Attributes:
        driver: "kvtrace" (its own loop), "generate", or "caller" (the program's own loop).
        max_new_tokens: Asked for; 0 when the caller decided.
        seed: None when nothing was seeded.
        temperature: 0 is greedy.
        top_k: 0 is all.
    """

    driver: str = "kvtrace"
    max_new_tokens: int = 0
    seed: int | None = None
    temperature: float = 0.0
    top_k: int = 0


class Rank(Struct, frozen=True, omit_defaults=True):
    """One of several processes that share the heads of a model (tensor parallel).

    Attributes:
        number: Its place among them, from 0; heads are dealt out in this order.
        size: How many share the heads.
        replica: Which copy of the model, where there are several; else 0.
    """

    number: int
    size: int
    replica: int = 0

    @property
    def sentence(self) -> str:
        """What every viewer of its trace alone must see."""
        return (
            f"rank {self.number} of {self.size}: only its share of the heads is here; "
            "`kvtrace merge` joins the ranks"
        )


class Meta(Struct, frozen=True, omit_defaults=True):
    """The head of a trace.

    Later META frames may add sites and cache layers. Of a cache layer they may say more than was
    known at first (kind, limits, where, remark), and of a site whether its rows are cached (source,
    window); never another shape.

    Attributes:
        model: What was watched.
        sites: In the order they first attended.
        cache_layers: In the order they were first read.
        lanes: Compared with the cached lane; empty: nothing was compared.
        sampling: How tokens were chosen.
        versions: Library name to version.
        prompt: Text of the prompt as given, may be empty.
        prompt_ids: Its token ids, where who drove the model knows them; each text begins with them.
        not_recorded: Sentences: what this trace leaves out.
        unseen: Modules that look like attention and were not seen, with the reason.
        version: Of the format.
        rank: Which process of a tensor-parallel model wrote it; None: the model ran in one.
    """

    model: ModelCard
    sites: tuple[Site, ...] = ()
    cache_layers: tuple[CacheLayer, ...] = ()
    lanes: tuple[Lane, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    versions: Mapping[str, str] = field(default_factory=dict)
    prompt: str = ""
    prompt_ids: tuple[int, ...] = ()
    not_recorded: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    version: int = FORMAT_VERSION
    rank: Rank | None = None

    @property
    def max_heads(self) -> int:
        """Most query heads of any site; columns of the layer × head grid."""
        return max((site.num_heads for site in self.sites), default=0)

    def lane(self, name: str) -> Lane | None:
        """The lane of that name, if it was computed."""
        return next((lane for lane in self.lanes if lane.name == name), None)
