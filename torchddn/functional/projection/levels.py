r"""One-dimensional total variation by cuts at levels: exact, for all rows at once.

Solves, for each row of x and s >= 0::

    y(x, s) = argmin_y  1/2 |y - x|^2 + sum_i s_i |y_{i+1} - y_i|

For any number t the set ``{i: y_i > t}`` is that of the ones in the labelling b which minimizes::

    E(b) = sum_i (t - x_i) b_i + sum_i s_i |b_{i+1} - b_i|

Begin with a row as one segment, and take its mean for t. If no labelling is better than all zeros, y is t on the whole
segment. Else the segment falls apart where b changes, and the parts are problems of their own: along a cut the higher
part has s_i taken from its end, the lower one gets it. All segments of all rows are cut at the same time, and those
that stay whole are done. Every round about halves the segments that are left, unless the numbers grow like those of a
geometric series.

The best labelling comes from messages along the chain, the gain of ``b_i = 0`` over everything to the left::

    c_i = a_i + min(max(c_{i-1}, -s_{i-1}), s_{i-1}),     a_i = t - x_i                                            (1)

``c_i < -s_i`` says that b_i is one, ``c_i > s_i`` that it is zero, and else it is as b_{i+1}. Functions of the form
"add, then clamp" are closed under composition. So the recursion (1) is solved by composing neighbors, then pairs of
neighbors, and so on, and going the same way back: about 2 log2(n) operations on whole lines, and work linear in n. A
zero s_i at the end of a segment makes (1) begin anew, which puts all segments in one line.

References:
    Hochbaum, An Efficient Algorithm for Image Segmentation, Markov Random Fields and Related Problems, 2001. Chambolle,
    Darbon, On Total Variation Minimization and Surface Evolution Using Parametric Maximum Flows, 2009. Both cut at
    levels with a maximal flow; on a chain the messages of dynamic programming do.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from torchddn.linear.scaling import power_of_two

__all__ = ["cut_at_levels"]

# In roundings of the largest number of a row: a message this near to a bound is on it.
_NEAR = 100.0


def cut_at_levels(x: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """``y``, ``(R, n)``, and the number of rounds, ``(R,)``, for ``x``, ``(R, n)``, and ``s``, ``(R, n - 1)``."""
    num_rows, n = x.shape
    num_rounds = torch.zeros(num_rows, dtype=torch.int64, device=x.device)
    y = torch.empty_like(x).flatten()
    # With the largest number of each row about one, what is near is the same for all.
    unit = power_of_two(x.abs().amax(dim=1, keepdim=True))
    # What is left of all rows in one line: place in y, number, coupling to the next, begin of a segment.
    place = torch.arange(num_rows * n, device=x.device)
    number, coupling = (x / unit).flatten(), pad(s / unit, (0, 1)).flatten()
    begins = place % n == 0
    while len(place):
        first = begins.nonzero().squeeze(1)
        num_rounds += torch.zeros_like(num_rounds).index_fill_(0, place[first] // n, 1)
        size = torch.cat([first, first.new_full((1,), len(place))]).diff()
        segment = torch.arange(len(first), device=x.device).repeat_interleave(size)
        means = torch.zeros_like(number[first]).index_add_(0, segment, number) / size
        ends = torch.cat([begins[1:], begins.new_ones(1)])
        high = _labels(means.repeat_interleave(size) - number, coupling, ends)
        cut = (high[1:] != high[:-1]) & ~begins[1:]
        at = cut.nonzero().squeeze(1)
        falls = torch.zeros_like(begins[first]).index_fill_(0, segment[at], True)
        taken = coupling[at] * torch.where(high[at], 1, -1)
        number = number.index_add(0, at, -taken).index_add_(0, at + 1, taken)
        coupling, begins = coupling.index_fill(0, at, 0), begins.index_fill(0, at + 1, True)
        if not bool(falls.all()):
            fell = falls.repeat_interleave(size)
            done, left = (~fell).nonzero().squeeze(1), fell.nonzero().squeeze(1)
            y[place[done]] = means[segment[done]]
            place, number, coupling, begins = (t[left] for t in (place, number, coupling, begins))
    return y.reshape(num_rows, n) * unit, num_rounds


def _labels(a: Tensor, coupling: Tensor, ends: Tensor) -> Tensor:
    """Where the best labelling is one, ``(N,)``, of equals one with few changes."""
    c = _messages(a, pad(coupling[:-1], (1, 0)))
    bound = coupling + _NEAR * torch.finfo(a.dtype).eps
    one = torch.where(ends, c < 0, c < -bound)
    decided = ends | one | (c > bound)
    # Others are as the next one that is decided.
    index = torch.arange(len(a), device=a.device).masked_fill(~decided, len(a))
    return one[index.flip(0).cummin(dim=0).values.flip(0)]


def _messages(a: Tensor, s: Tensor) -> Tensor:
    """``c`` of (1), ``(N,)``; ``s`` is the coupling to the number before, zero for the first."""
    shift, low, high = a, a - s, a + s
    levels: list[tuple[Tensor, Tensor, Tensor, int]] = []
    while len(shift) > 1:
        size = len(shift)
        if size % 2:
            shift, low, high = (pad(t, (0, 1)) for t in (shift, low, high))
        levels.append((shift[0::2], low[0::2], high[0::2], size))
        first, (shift, low, high) = levels[-1][:3], (shift[1::2], low[1::2], high[1::2])
        low, high = (torch.clamp(bound + shift, low, high) for bound in first[1:])
        shift = first[0] + shift
    c = torch.clamp(shift, low, high)
    for shift, low, high, size in reversed(levels):
        even = torch.clamp(pad(c[:-1], (1, 0)) + shift, low, high)
        c = torch.stack([even, c], dim=1).flatten()[:size]
    return c
