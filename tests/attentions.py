"""Attention as people write it, each in a small classifier of sequences: x (rows, 6, 5) -> (rows, 3).

case = ATTENTIONS["relative"]()      # a Case of tests.models, seeded
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petra_deploy.testing.case import Case, case

WIDTH, HEADS, STEPS = 16, 4, 6


class Classifier(nn.Module):
    """Pre-norm blocks around an attention module that takes and gives (rows, steps, width)."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Linear(5, WIDTH)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), make(), nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 32), nn.GELU(), nn.Linear(32, WIDTH))
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.embed(x)], 1)
        x = x + self.attention(self.norm1(x))
        x = x + self.mlp(self.norm2(x))
        return self.head(x[:, 0])


class Fused(nn.Module):
    """One layer for q, k and v, sizes read off the input, as in ViT."""

    def __init__(self) -> None:
        super().__init__()
        self.num_heads, self.scale = HEADS, (WIDTH // HEADS) ** -0.5
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, width = x.shape
        qkv = self.qkv(x).reshape(rows, steps, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        shares = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1)
        return self.proj((shares @ v).transpose(1, 2).reshape(rows, steps, width))


class Causal(nn.Module):
    """A split by a number of its own and a causal mask, as in GPT."""

    def __init__(self) -> None:
        super().__init__()
        self.n_head, self.n_embd = HEADS, WIDTH
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, width = x.size()
        parts = self.c_attn(x).split(self.n_embd, dim=2)
        q, k, v = (p.view(rows, steps, self.n_head, width // self.n_head).transpose(1, 2) for p in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).contiguous().view(rows, steps, width))


class Relative(nn.Module):
    """Relative positions with an embedding a head, as in T5, and a scale a head; q, k and v together in each head."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.distance, self.scale = nn.Embedding(32, HEADS), nn.Parameter(torch.rand(HEADS, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        rows, steps, _ = x.shape
        q, k, v = self.qkv(x).view(rows, steps, self.heads, -1).transpose(1, 2).chunk(3, -1)
        place = torch.arange(steps)
        bias = self.distance(place[:, None] - place[None] + 16).permute(2, 0, 1)
        shares = (q @ k.transpose(-2, -1) * self.scale + bias).softmax(-1)
        return self.out((shares @ v).transpose(1, 2).flatten(2))


class Grouped(nn.Module):
    """Two heads of queries for each of keys, split by the size of a head, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.head_dim = WIDTH // HEADS
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.k_proj, self.v_proj = nn.Linear(WIDTH, WIDTH // 2), nn.Linear(WIDTH, WIDTH // 2)

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:-1], -1, self.head_dim)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q_proj, self.k_proj, self.v_proj))
        k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
        return self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:-1], -1))


class Split(nn.Module):
    """Attention and its output projection in two modules, all sizes kept, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.self, self.output = _Self(), nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Dropout(0.1))

    def forward(self, x: Tensor) -> Tensor:
        return self.output(self.self(x)[0])


class _Self(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_attention_heads, self.attention_head_size, self.all_head_size = HEADS, WIDTH // HEADS, WIDTH
        self.query, self.key, self.value = (nn.Linear(WIDTH, WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor]:
        shape = (*x.size()[:-1], self.num_attention_heads, self.attention_head_size)
        q, k, v = (layer(x).view(shape).permute(0, 2, 1, 3) for layer in (self.query, self.key, self.value))
        y = ((q @ k.transpose(-1, -2)) / math.sqrt(self.attention_head_size)).softmax(-1) @ v
        y = y.permute(0, 2, 1, 3).contiguous()
        return (y.view(*y.size()[:-2], self.all_head_size),)


class Torch(nn.Module):
    """nn.MultiheadAttention, with the steps first."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.inner(x, x, x)[0].transpose(0, 1)


class Written(nn.Module):
    """The number of heads stands in the code alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).view(len(x), -1, 4, 4).transpose(1, 2) for layer in (self.q, self.k, self.v))
        return self.o(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


def _case(make: Callable[[], nn.Module]) -> Callable[[], Case]:
    return case(make.__name__, lambda: Classifier(make), x=(STEPS, 5))


ATTENTIONS: dict[str, Callable[[], Case]] = {
    "fused": _case(Fused),
    "causal": _case(Causal),
    "relative": _case(Relative),
    "grouped": _case(Grouped),
    "split": _case(Split),
    "torch": _case(Torch),
}
WRITTEN = _case(Written)
