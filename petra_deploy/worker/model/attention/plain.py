"""nn.MultiheadAttention as four plain Linear layers, whose heads are independent of the width around them.

    copy = plain(model, example)       # every nn.MultiheadAttention is an Attention; outputs as before

torch's own layer keeps q, k and v in one weight and has width / heads channels in each head, so neither
heads nor the residual stream can be cut. The rewrite is exact (masks, weights and batch order included)
and is believed only where the outputs agree. Source: Vaswani et al., arXiv 1706.03762.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from petra_deploy.worker.model import surgery
from petra_deploy.worker.model.trial import Trial


class Attention(nn.Module):
    """Called and answering like the nn.MultiheadAttention that it stands for.

    query (rows, L, width), key and value (rows, S, ...), rows second unless `batch_first`, or without
    rows -> output of the query's shape, and the weights: (rows, L, S), or (rows, heads, L, S), or None.
    """

    in_proj_bias = None  # both keep nn.TransformerEncoderLayer off its fused path,
    _qkv_same_embed_dim = False  # which reads weights that are no longer there

    def __init__(self, q: nn.Linear, k: nn.Linear, v: nn.Linear, out_proj: nn.Linear, num_heads: int,
                 batch_first: bool, dropout: float = 0.0) -> None:  # fmt: skip
        super().__init__()
        self.q, self.k, self.v, self.out_proj = q, k, v, out_proj
        self.num_heads = num_heads
        self.head_dim = q.out_features // num_heads
        self.batch_first = batch_first
        self.dropout = dropout

    @property
    def embed_dim(self) -> int:
        return self.q.in_features

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if is_causal and attn_mask is None:
            raise RuntimeError("is_causal is a hint about attn_mask, which is missing")
        rows = query.dim() == 3
        if not rows:
            query, key, value = (t.unsqueeze(0) for t in (query, key, value))
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = (t.transpose(0, 1) for t in (query, key, value))
        q, k, v = self._split(self.q(query)), self._split(self.k(key)), self._split(self.v(value))
        mask = self._mask(attn_mask, key_padding_mask, q)
        weights: Tensor | None = None
        if need_weights:
            scores = (q * self.head_dim**-0.5) @ k.transpose(-2, -1)
            shares = (scores if mask is None else scores + mask).softmax(-1)
            shares = F.dropout(shares, self.dropout, self.training)
            weights = shares.mean(1) if average_attn_weights else shares
            joined = shares @ v
        else:
            joined = F.scaled_dot_product_attention(q, k, v, mask, self.dropout if self.training else 0.0)
        out: Tensor = self.out_proj(joined.transpose(1, 2).flatten(2))
        if not rows:
            return out.squeeze(0), None if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _split(self, x: Tensor) -> Tensor:
        """(rows, steps, heads * size) -> (rows, heads, steps, size)."""
        return x.view(*x.shape[:-1], self.num_heads, self.head_dim).transpose(1, 2)

    def _mask(self, attention: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """What is added to the scores; (rows, heads, 1 or L, S), or (L, S) without padding."""
        mask = _added(attention, q)
        if mask is not None and mask.dim() == 3:  # (rows * heads, L, S)
            mask = mask.view(-1, self.num_heads, *mask.shape[1:])
        if padding is None:
            return mask
        padded = _added(padding, q)[:, None, None, :].expand(-1, self.num_heads, -1, -1)  # type: ignore[index]
        return padded if mask is None else mask + padded


def _added(mask: Tensor | None, like: Tensor) -> Tensor | None:
    """True, which forbids, as minus infinity."""
    if mask is None or mask.dtype != torch.bool:
        return mask
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))


def plain(model: nn.Module, trial: Trial) -> nn.Module:
    """A copy (sharing weights) in which every nn.MultiheadAttention is an Attention.

    `model` itself where there is none, or where the copy would not answer as before.
    """
    if not any(_fits(module) for module in model.modules()):
        return model
    reason = trial.differs(_rewrite)
    if reason is not None:
        return model
    copied = surgery.twin(model)
    _rewrite(copied)
    return copied


def _fits(module: nn.Module) -> bool:
    if not isinstance(module, nn.MultiheadAttention) or module.bias_k is not None or module.add_zero_attn:
        return False
    return type(module).forward is nn.MultiheadAttention.forward  # a subclass may only be named otherwise


def _rewrite(model: nn.Module) -> None:
    made: dict[nn.Module, Attention] = {}
    cut: dict[tuple[int, int, int], nn.Parameter] = {}  # tied weights stay tied
    for owner in list(model.modules()):
        for name, child in list(owner._modules.items()):
            if child is not None and _fits(child):
                attention = cast(nn.MultiheadAttention, child)
                if child not in made:
                    made[child] = _of(attention, cut)
                setattr(owner, name, made[child])
        if isinstance(owner, nn.TransformerEncoder):
            owner.use_nested_tensor = False


def _of(layer: nn.MultiheadAttention, cut: dict[tuple[int, int, int], nn.Parameter]) -> Attention:
    width = layer.embed_dim

    def part(tensor: Tensor | None, start: int, whole: bool = False) -> nn.Parameter | None:
        if tensor is None:
            return None
        rows = tensor.detach() if whole else tensor.detach()[start : start + width]
        return cut.setdefault((id(tensor), start, len(rows)), nn.Parameter(rows, requires_grad=tensor.requires_grad))

    def projection(index: int, name: str) -> nn.Linear:
        fused = layer.in_proj_weight
        weight = part(getattr(layer, f"{name}_proj_weight"), 0, True) if fused is None else part(fused, index * width)
        return _linear(cast(nn.Parameter, weight), part(layer.in_proj_bias, index * width))

    q, k, v = (projection(index, name) for index, name in enumerate("qkv"))
    out = _linear(layer.out_proj.weight, layer.out_proj.bias)
    return Attention(q, k, v, out, layer.num_heads, layer.batch_first, layer.dropout).train(layer.training)


def _linear(weight: Tensor, bias: nn.Parameter | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = cast(nn.Parameter, weight)
    layer.bias = bias  # type: ignore[assignment]
    return layer
