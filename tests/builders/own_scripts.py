"""Programs as people write them around their own models: what `kvtrace run` is given."""

from __future__ import annotations

from pathlib import Path

MODEL = """
import torch, torch.nn as nn, torch.nn.functional as F

class CausalSelfAttention(nn.Module):
    def __init__(self, n_embd=32, n_head=4):
        super().__init__()
        self.c_attn = nn.Linear(n_embd, 3 * n_embd)
        self.c_proj = nn.Linear(n_embd, n_embd)
        self.n_head, self.n_embd = n_head, n_embd

    def forward(self, x):
        B, T, C = x.size()
        q, k, v = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (t.view(B, T, self.n_head, C // self.n_head).transpose(1, 2) for t in (q, k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(B, T, C))

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(32), nn.LayerNorm(32)
        self.attn = CausalSelfAttention()
        self.mlp = nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

class GPT(nn.Module):
    def __init__(self, vocab=27, block_size=24):
        super().__init__()
        self.block_size = block_size
        self.wte, self.wpe = nn.Embedding(vocab, 32), nn.Embedding(block_size, 32)
        self.h = nn.ModuleList([Block() for _ in range(2)])
        self.ln_f, self.lm_head = nn.LayerNorm(32), nn.Linear(32, vocab, bias=False)

    def forward(self, idx, targets=None):
        b, t = idx.size()
        assert t <= self.block_size
        x = self.wte(idx) + self.wpe(torch.arange(t))
        for block in self.h:
            x = block(x)
        x = self.ln_f(x)
        if targets is not None:
            logits = self.lm_head(x)
            return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return self.lm_head(x[:, [-1], :]), None

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        for _ in range(max_new_tokens):
            idx_cond = idx if idx.size(1) <= self.block_size else idx[:, -self.block_size:]
            logits, _ = self(idx_cond)
            logits = logits[:, -1, :] / temperature
            if top_k is not None:
                v, _ = torch.topk(logits, min(top_k, logits.size(-1)))
                logits[logits < v[:, [-1]]] = -float("Inf")
            idx = torch.cat((idx, torch.multinomial(F.softmax(logits, dim=-1), 1)), dim=1)
        return idx
"""

SAMPLE = """
import torch
from contextlib import nullcontext
from model import GPT
start, num_samples, max_new_tokens, temperature, top_k = "abc", 2, 5, 0.8, 5
torch.manual_seed(1337)
stoi = {chr(97 + i): i for i in range(26)} | {" ": 26}
itos = {i: c for c, i in stoi.items()}
encode, decode = lambda s: [stoi[c] for c in s], lambda l: "".join(itos[i] for i in l)
model = GPT(); model.eval()
x = torch.tensor(encode(start), dtype=torch.long)[None, ...]
with torch.no_grad():
    with nullcontext():
        for k in range(num_samples):
            y = model.generate(x, max_new_tokens, temperature=temperature, top_k=top_k)
            print(decode(y[0].tolist()))
            print("---------------")
"""

TRAIN = """
import torch
from model import GPT
torch.manual_seed(1)
data = torch.randint(27, (400,))
def get_batch():
    ix = torch.randint(len(data) - 9, (4,))
    return torch.stack([data[i:i+8] for i in ix]), torch.stack([data[i+1:i+9] for i in ix])
model, start = GPT(), torch.zeros((1, 1), dtype=torch.long)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
@torch.no_grad()
def estimate_loss():
    model.eval()
    losses = [model(*get_batch())[1].item() for _ in range(3)]
    model.train()
    return sum(losses) / 3
for step in range(6):
    xb, yb = get_batch()
    logits, loss = model(xb, yb)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    if step == 3:
        print("early:", model.generate(start, max_new_tokens=4)[0].tolist())
print("loss", round(estimate_loss(), 3) > 0)
print("late:", model.generate(start, max_new_tokens=4)[0].tolist())
"""

FUNCTIONAL = """
import torch, math
def gelu(x): return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
def layer_norm(x, g, b, eps=1e-5):
    variance = x.var(-1, keepdim=True, unbiased=False)
    return g * (x - x.mean(-1, keepdim=True)) / torch.sqrt(variance + eps) + b
def linear(x, w, b): return x @ w + b
def ffn(x, c_fc, c_proj): return linear(gelu(linear(x, **c_fc)), **c_proj)
def attention(q, k, v, mask): return torch.softmax(q @ k.T / math.sqrt(q.shape[-1]) + mask, -1) @ v
def mha(x, c_attn, c_proj, n_head):
    x = linear(x, **c_attn)
    qkv_heads = [t.chunk(n_head, dim=-1) for t in x.chunk(3, dim=-1)]
    mask = (1 - torch.tril(torch.ones(x.shape[0], x.shape[0]))) * -1e10
    out = [attention(q, k, v, mask) for q, k, v in zip(*qkv_heads)]
    return linear(torch.cat(out, -1), **c_proj)
def block(x, mlp, attn, ln_1, ln_2, n_head):
    x = x + mha(layer_norm(x, **ln_1), **attn, n_head=n_head)
    return x + ffn(layer_norm(x, **ln_2), **mlp)
def gpt2(inputs, wte, wpe, blocks, ln_f, n_head):
    x = wte[inputs] + wpe[range(len(inputs))]
    for b in blocks:
        x = block(x, **b, n_head=n_head)
    return layer_norm(x, **ln_f) @ wte.T
def generate(inputs, params, n_head, n):
    for _ in range(n):
        logits = gpt2(inputs, **params, n_head=n_head)
        inputs.append(int(torch.argmax(logits[-1])))
    return inputs[len(inputs) - n:]
torch.manual_seed(0)
D = 24
lin = lambda i, o: {"w": torch.randn(i, o) * 0.3, "b": torch.zeros(o)}
ln = lambda: {"g": torch.ones(D), "b": torch.zeros(D)}
blocks = [{"attn": {"c_attn": lin(D, 3 * D), "c_proj": lin(D, D)}, "ln_1": ln(), "ln_2": ln(),
           "mlp": {"c_fc": lin(D, 2 * D), "c_proj": lin(2 * D, D)}} for _ in range(2)]
params = {"wte": torch.randn(50, D), "wpe": torch.randn(32, D), "ln_f": ln(), "blocks": blocks}
print(generate([3, 14, 15, 9, 2], params, 3, 4))
"""

DIRECT = """
import torch
from model import GPT
torch.manual_seed(0)
class Sampler:
    def __init__(self): self.model = GPT().eval()
    def __call__(self, ids, n):
        with torch.inference_mode():
            for _ in range(n):
                logits = self.model.forward(ids)[0]
                ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
        return ids
print(Sampler()(torch.tensor([[1, 2, 3]]), 4).tolist())
"""

ARGUMENTS = """
import argparse, sys, torch
from model import GPT
parser = argparse.ArgumentParser()
parser.add_argument("--num", "-n", type=int, default=2)
parser.add_argument("-o", default="nothing")
args = parser.parse_args()
torch.manual_seed(0)
ids = GPT().eval().generate(torch.tensor([[1, 2]]), args.num)
print(sys.argv[1:], __name__, args.o, ids.shape[1])
sys.exit(7)
"""

STDIN = """
import sys, torch
from model import GPT
torch.manual_seed(0)
model = GPT().eval()
for line in sys.stdin:
    ids = torch.tensor([[ord(c) - 97 for c in line.strip()]])
    print(line.strip(), model.generate(ids, 2).shape[1])
"""

DRAFT = """
import torch
from model import GPT
torch.manual_seed(0)
draft, target = GPT().eval(), GPT().eval()
ids = torch.tensor([[1, 2, 3]])
with torch.no_grad():
    for _ in range(3):
        guess = draft.generate(ids, 2)
        target(guess, guess)
        picked = target(guess[:, :-1])[0].argmax(-1)
        ids = torch.cat([ids, picked], 1)
print(ids.shape)
"""

RAISES = """
import torch
from model import GPT
torch.manual_seed(0)
def go():
    model = GPT().eval()
    ids = torch.tensor([[1, 2, 3]])
    with torch.no_grad():
        for step in range(100):
            logits, _ = model(ids)
            ids = torch.cat([ids, logits[:, -1].argmax(-1, keepdim=True)], 1)
go()
"""

RECURRENT = """
import torch, torch.nn as nn
class CharRNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.rnn = nn.Embedding(30, 16), nn.LSTM(16, 16, batch_first=True)
        self.out = nn.Linear(16, 30)
    def forward(self, ids, state=None):
        y, state = self.rnn(self.emb(ids), state)
        return self.out(y), state
model, state, ids = CharRNN(), None, torch.tensor([[1]])
with torch.no_grad():
    for _ in range(4):
        logits, state = model(ids, state)
        ids = logits[:, -1].argmax(-1, keepdim=True)
print("ok")
"""

VISION = """
import torch, torch.nn as nn
net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
print(net(torch.ones(2, 4)).shape)
"""

HUGGING_FACE = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
torch.manual_seed(0)
config = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=90, n_positions=64,
                    bos_token_id=1, eos_token_id=2)
model = GPT2LMHeadModel(config).eval()
ids = torch.randint(3, 80, (1, 6))
out = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
print(out.tolist())
print(model.forward(input_ids=ids).logits.shape)
"""

NOTEBOOK = """
cells = ["import torch; from model import GPT", "torch.manual_seed(0); model = GPT().eval()",
         "ids = torch.tensor([[5, 6]])", "print(model.generate(ids, 3).shape)"]
space = {}
for number, cell in enumerate(cells):
    exec(compile(cell, f"<ipython-input-{number}>", "exec"), space)
"""

METHOD = """
import torch
from model import GPT as Base
class GPT(Base):
    def step(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))
torch.manual_seed(0)
model, ids = GPT().eval(), torch.tensor([[1, 2, 3]])
with torch.no_grad():
    for _ in range(4):
        ids = torch.cat([ids, model.step(ids)[:, -1].argmax(-1, keepdim=True)], 1)
print(ids.tolist())
"""

SCRIPTS = {
    name.lower(): text
    for name, text in list(globals().items())
    if name.isupper() and isinstance(text, str)
}


def write(folder: Path) -> None:
    """All of them, each in a file of its name."""
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(text.lstrip())
