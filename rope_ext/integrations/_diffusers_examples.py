"""Calls of the rotary functions of diffusers that together cover each branch: {dialect: calls(x, table)}."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._dialect import Call, Calls, Draw

B, S, H, D, P = 2, 5, 3, 8, 4


def _two(table: Draw, *shape: int) -> tuple[Tensor, Tensor]:
    return table(*shape), table(*shape)


def _cis(table: Draw, *shape: int) -> Tensor:
    return torch.view_as_complex(table(*shape, 2).float())


def _states(x: Draw) -> tuple[Tensor, Tensor]:
    """States in the two memory orders of models: heads after tokens, and tokens after heads."""
    return x(B, S, H, D), x(B, H, S, D).transpose(1, 2)


def _embeddings_calls(x: Draw, t: Draw) -> list[Call]:
    real = [
        ((states, _two(t, *((S, D) if axis == 1 else (H, D)))), {"use_real_unbind_dim": unbind, "sequence_dim": axis})
        for states in _states(x)
        for unbind in (-1, -2)
        for axis in (1, 2)
    ]
    defaults: list[Call] = [((x(B, H, S, D), _two(t, S, D)), {})]
    return real + defaults + [((states, _cis(t, n, S, P), False), {}) for states in _states(x) for n in (1, B)]


def _qwen_calls(x: Draw, t: Draw) -> list[Call]:
    real = [((x(B, H, S, D), _two(t, S, D)), {"use_real_unbind_dim": unbind}) for unbind in (-1, -2)]
    return real + [((states, _cis(t, S, P)), {"use_real": False}) for states in _states(x)]


def _ltx2_split_calls(x: Draw, t: Draw) -> list[Call]:
    merged: Call = ((x(B, S, H * D), _two(t, B, H, S, P)), {})
    return [merged, ((x(B, H, S, D), _two(t, B, H, S, P)), {}), ((x(B, S, D), _two(t, B, S, P)), {})]


def _allegro_calls(x: Draw, t: Draw) -> list[Call]:
    rows, wide = 7, 3 * D
    positions = [torch.arange(B * S).reshape(B, S) * step % rows for step in (1, 2, 3)]
    return [((x(B, H, S, wide), [_two(t, rows, D) for _ in range(3)], positions), {})]


def _anyflow_calls(x: Draw, t: Draw) -> list[Call]:
    dtypes = (torch.complex64, torch.complex128)
    return [((states, _cis(t, 1, S, 1, P).to(dtype)), {}) for states in _states(x) for dtype in dtypes]


def _wan_animate_2_calls(x: Draw, t: Draw) -> list[Call]:
    freqs = torch.view_as_complex(t(6, P, 2).double())
    grids = torch.tensor([[2, 1, 2], [1, 2, 2]])
    return [((x(B, S, H, D), grids, freqs), {}), ((x(B, S, H, D), grids, freqs, 3), {})]


def _ltx2_decoder_calls(x: Draw, t: Draw) -> list[Call]:
    sizes = {1: 3, 2: 2, 3: 4}
    wide = x(B, *sizes.values(), H, 2 * D)
    return [((None, wide[..., :D], t(n).float(), t(P).float(), axis), {}) for axis, n in sizes.items()]


def _after_states(*draw: Callable[[Draw], Any], heads: tuple[int, ...] = (H,)) -> Calls:
    """Calls whose arguments are one state per entry of heads, followed by d(table) for each d of draw."""

    def calls(x: Draw, t: Draw) -> list[Call]:
        states = zip(*(_states(lambda *shape, n=n: x(*(n if m == H else m for m in shape))) for n in heads))
        return [((*qk, *(d(t) for d in draw)), {}) for qk in states]

    return calls


CALLS: dict[str, Calls] = {
    "embeddings": _embeddings_calls,
    "qwen": _qwen_calls,
    "stable_audio": lambda x, t: [((None, x(B, H, S, D), _two(t, S, P)), {})],
    "longcat_audio": _after_states(lambda t: _two(t, S, D)),
    "joyimage": _after_states(lambda t: _two(t, S, D), heads=(H, 1)),
    "joyimage_batched": _after_states(lambda t: _two(t, B, S, D), heads=(H, 1)),
    "ltx": lambda x, t: [((x(B, S, D), _two(t, n, S, D)), {}) for n in (1, B)],
    "anima": lambda x, t: [((x(B, H, S, D), *_two(t, B, S, D)), {}), ((x(B, S, H, D), *_two(t, 1, S, D), 2), {})],
    "minimax_h3": _after_states(*[lambda t: t(S, P)] * 2),
    "minimax_music3": _after_states(lambda t: _two(t, S, P)),
    "wan": _after_states(*[lambda t: t(1, S, 1, D)] * 2),
    "helios": _after_states(lambda t: t(B, S, 2 * D)),
    "mochi": _after_states(*[lambda t: t(S, H, P)] * 2),
    "kolors": lambda x, t: [((x(S, B, H, D), t(S + 2, n, 2, 2)), {}) for n in (1, B)],
    "complex": _after_states(lambda t: _cis(t, B, S, P)),
    "anyflow": _anyflow_calls,
    "sana_wm": lambda x, t: [((x(B, H, S, D).transpose(2, 3), _cis(t, 1, 1, S, P)), {})],
    "wan_animate_2": _wan_animate_2_calls,
    "hidream": _after_states(lambda t: t(B, S, 1, P, 2, 2), heads=(H, 1)),
    "prx": _after_states(lambda t: t(1, S, 1, P, 2, 2)),
    "kandinsky5": _after_states(lambda t: t(S, 1, P, 2, 2)),
    "kandinsky6": _after_states(lambda t: t(S, 1, P, 2, 2)),
    "ernie_image": _after_states(lambda t: t(B, S, 1, P)),
    "stable_audio_3": _after_states(lambda t: t(S + 2, P)),
    "ltx2_decoder": _ltx2_decoder_calls,
    "ltx2_split": _ltx2_split_calls,
    "allegro": _allegro_calls,
}
