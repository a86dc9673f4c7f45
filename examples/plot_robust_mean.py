r"""
A mean that ignores outliers
============================

The mean minimizes the sum of squared distances to the data. With another penalty,

.. math:: y(x) = \arg\min_y \sum_i \phi(y - x_i; \alpha),

a far point pulls less, or not at all. :func:`torchddn.functional.robust_pool` solves this for five penalties and
differentiates the solution.
"""

import matplotlib.pyplot as plt
import torch

import torchddn as ddn

inliers = torch.tensor([-0.4, -0.1, 0.0, 0.15, 0.35], dtype=torch.float64)
outlier = torch.linspace(-4, 4, 161, dtype=torch.float64)
x = torch.cat([inliers.expand(len(outlier), -1), outlier[:, None]], dim=1).requires_grad_()

# %%
# Five points stay, one moves. Left, the pooled value; right, its derivative with respect to the moving point: the
# influence that the point has. It is constant for the mean, and vanishes where a penalty has become flat. For Welsch it
# turns negative on the way: a point that leaves takes its pull along.

penalties = ("quadratic", "pseudo_huber", "huber", "welsch", "truncated_quadratic")
colors = ("#000000", "#56B4E9", "#009E73", "#D55E00", "#CC79A7")
fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for penalty, color in zip(penalties, colors, strict=True):
    y = ddn.functional.robust_pool(x, penalty, alpha=1.0)
    (influence,) = torch.autograd.grad(y.sum(), x)
    left.plot(outlier, y.detach(), color=color, label=penalty.replace("_", " "))
    right.plot(outlier, influence[:, -1], color=color)
left.set(xlabel="position of the moving point", ylabel="pooled value")
right.set(xlabel="position of the moving point", ylabel="its influence on the pooled value")
left.legend(fontsize="small")
plt.show()
