"""Split a packed tensor into the heads of q, k and v, and join them again. All splits are views."""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

Views: TypeAlias = tuple[Tensor, Tensor, Tensor]


class Packing(NamedTuple):
    """The form of a packed tensor.

    After `axis` axes of tokens, its shape is (width,), (heads, head_dim), (3, num_heads, head_dim) or, if grouped,
    (num_kv_heads, heads of a group, head_dim). A group has the q heads that share a k head, that k head and its v head.
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
        """Whether the q heads have a single stride."""
        return not self.grouped or self.num_kv_heads == 1 or self.q_of_group == 1

    def split(self, qkv: Tensor, cut: Callable[..., Sequence[Tensor]] = torch.split_with_sizes) -> Views:
        """Views of q, k and v; a grouped q is (..., num_kv_heads, q_of_group, head_dim).

        cut: the default, which PyTorch differentiates by one torch.cat; or `slices`, whose results autograd allows
        writing to.
        """
        axis, q_of_group = self.axis, self.q_of_group
        shape = (self.num_kv_heads, q_of_group + 2) if self.grouped else (self.heads,)
        sizes = qkv.shape
        if len(sizes) == axis + 1:  # view() takes two thirds of the time of unflatten()
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
        """q, from `split` or merged, as views of one stride each: q itself, or the heads at each place of a group."""
        if self.is_one_view:
            return [self.merged(q)]
        if q.dim() == self.axis + 2:
            q = q.unflatten(self.axis, (self.num_kv_heads, self.q_of_group))
        return [q.select(self.axis + 1, place) for place in range(self.q_of_group)]

    def merged(self, q: Tensor) -> Tensor:
        """q from `split` as (..., num_heads, head_dim): a copy unless `is_one_view`."""
        return q.flatten(self.axis, self.axis + 1) if q.dim() == self.axis + 3 else q

    def join(self, q: Tensor, k: Tensor, v: Tensor, shape: Sequence[int]) -> Tensor:
        """The packed tensor, of this shape, of q, k and v, each (..., heads, head_dim)."""
        axis = self.axis
        if self.grouped:  # not unflatten(), which is_grads_batched does not support
            q = q.reshape(*q.shape[:axis], self.num_kv_heads, self.q_of_group, q.shape[-1])
            k, v = k.unsqueeze(axis + 1), v.unsqueeze(axis + 1)
        return torch.cat((q, k, v), dim=axis + self.grouped).reshape(shape)


def slices(t: Tensor, sizes: Sequence[int], axis: int) -> list[Tensor]:
    """The result of torch.split_with_sizes, but as independent views."""
    return [t.narrow(axis, end - size, size) for size, end in zip(sizes, accumulate(sizes))]
