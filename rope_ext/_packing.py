"""Where the heads of q, k and v are in one packed tensor, and back: views only."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Views: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Packing(NamedTuple):
    """The form of a packed tensor.

    After `axis` axes of tokens its shape goes on with (width,), (heads, head_dim), (3, num_heads, head_dim), or, if
    grouped, (num_kv_heads, heads of a group, head_dim). A group is the q heads that share a k head, this k and its v.
    """

    axis: int
    num_heads: int
    num_kv_heads: int
    grouped: bool

    @property
    def heads(self) -> int:
        return self.num_heads + 2 * self.num_kv_heads

    @property
    def q_of_group(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def is_one_view(self) -> bool:
        """Whether one stride leads from each head of q to the next."""
        return not self.grouped or self.num_kv_heads == 1 or self.q_of_group == 1

    def split(self, qkv: Tensor, cut: Callable[..., Sequence[Tensor]] = torch.split_with_sizes) -> Views:
        """Views of q, k and v; a grouped q is (.., num_kv_heads, q_of_group, head_dim).

        cut: as here, which PyTorch differentiates by one torch.cat; or `slices`, which autograd lets be written.
        """
        axis, q_of_group = self.axis, self.q_of_group
        shape = (self.num_kv_heads, q_of_group + 2) if self.grouped else (self.heads,)
        sizes = qkv.shape
        if len(sizes) == axis + 1:  # view(), since unflatten() takes half as long again
            qkv = qkv.view(*sizes[:axis], *shape, sizes[axis] // self.heads)
        elif self.grouped and len(sizes) == axis + 2:
            qkv = qkv.view(*sizes[:axis], *shape, sizes[-1])
        if self.grouped:
            q, k, v = cut(qkv, (q_of_group, 1, 1), axis + 1)
            return q, k.squeeze(axis + 1), v.squeeze(axis + 1)
        if qkv.dim() == axis + 3:
            q, k, v = cut(qkv, (1, 1, 1), axis)
            return q.squeeze(axis), k.squeeze(axis), v.squeeze(axis)
        q, k, v = cut(qkv, (self.num_heads, self.num_kv_heads, self.num_kv_heads), axis)
        return q, k, v

    def parts(self, q: Tensor) -> list[Tensor]:
        """q, of `split` or merged, as views of one stride each: itself, or the heads at each place of their groups."""
        if self.is_one_view:
            return [self.merged(q)]
        if q.dim() == self.axis + 2:
            q = q.unflatten(self.axis, (self.num_kv_heads, self.q_of_group))
        return [q.select(self.axis + 1, place) for place in range(self.q_of_group)]

    def merged(self, q: Tensor) -> Tensor:
        """q of `split` as (.., num_heads, head_dim): a copy unless `is_one_view`."""
        return q.flatten(self.axis, self.axis + 1) if q.dim() == self.axis + 3 else q

    def join(self, q: Tensor, k: Tensor, v: Tensor, shape: Sequence[int]) -> Tensor:
        """The packed tensor, of this shape, of q, k and v, each (.., heads, head_dim)."""
        axis = self.axis
        if self.grouped:  # is_grads_batched knows no unflatten
            q = q.reshape(*q.shape[:axis], self.num_kv_heads, self.q_of_group, q.shape[-1])
            k, v = k.unsqueeze(axis + 1), v.unsqueeze(axis + 1)
        return torch.cat((q, k, v), dim=axis + self.grouped).reshape(shape)


def slices(t: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    """What torch.split_with_sizes returns, but each a view of its own."""
    return [t.narrow(axis, end - size, size) for size, end in zip(sizes, accumulate(sizes))]
