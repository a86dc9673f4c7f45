r"""
Tolls on a small road network
=============================

Drivers choose the fastest way for themselves. Together they slow each other down: at their equilibrium the roads take
longer than they would if somebody sent the drivers around. Tolls can bring about the same. Which tolls? Drivers answer
every choice of them with another equilibrium, so this is a bi-level problem.

With flow :math:`x_e` on road :math:`e`, travel time :math:`t_e(x) = t^0_e (1 + (x / c_e)^2)` and toll
:math:`\theta_e` (in minutes), the equilibrium is the minimum of Beckmann's function under conservation of flow:

.. math::

   y(\theta) = \arg\min_x \sum_e \int_0^{x_e} \big(t_e(s) + \theta_e\big)\, ds
   \quad \text{subject to} \quad A x = d, \; x \ge 0,

and the upper objective is the time that all drivers spend, :math:`\sum_e y_e t_e(y_e)`. Tolls do not count in it: they
change hands, time is lost.
"""

import matplotlib.pyplot as plt
import torch

import torchddn as ddn
from torchddn.bilevel import Box, Positive, minimize_bilevel

torch.set_default_dtype(torch.float64)

# %%
# A grid of three by three crossings with one-way roads to the east and to the south; everybody drives from the
# northwest to the southeast. The roads through the middle are fast and narrow, those around it slow and wide.

crossings = [(row, column) for row in range(3) for column in range(3)]
roads = [(a, b) for a in crossings for b in crossings if (b[0] - a[0], b[1] - a[1]) in ((0, 1), (1, 0))]
middle = torch.tensor([(1, 1) in road for road in roads])
free_time = torch.where(middle, 3.0, 8.0)
capacity = torch.where(middle, 2.0, 5.0)
demand = 6.0

incidence = torch.tensor([[float(end == c) - float(begin == c) for begin, end in roads] for c in crossings])
supply = torch.zeros(len(crossings))
supply[0], supply[-1] = -demand, demand


def times(x):
    return free_time * (1 + (x / capacity).square())


def total_time(x):
    return (x * times(x)).sum()


class Drivers(ddn.Problem):
    def objective(self, x, toll):
        return (free_time * (x + x**3 / (3 * capacity.square())) + toll * x).sum()

    def equality(self, x, toll):
        return (incidence @ x - supply)[1:]  # the first crossing follows from the others

    def bounds(self, toll):
        return 0.0, None

    def initial(self, toll):
        return torch.full_like(toll, demand / 3)


# %%
# Without tolls, and as if somebody sent the drivers around: the same constraints with the total time as the objective.

no_toll = torch.zeros(1, len(roads))
selfish = ddn.DeclarativeNode(Drivers())(no_toll)[0]
best = ddn.argmin(
    lambda x, _: total_time(x),
    torch.full((len(roads),), demand / 3),
    no_toll,
    equality=lambda x, _: (incidence @ x - supply)[1:],
    bounds=(0.0, None),
    start="item",
)[0]
print(f"selfish drivers {float(total_time(selfish)):.2f}, sent around {float(total_time(best)):.2f}")

# %%
# Tolls on every road reach the latter exactly. The theory of Pigou says which do: :math:`\theta_e = x_e t_e'(x_e)`,
# what a driver costs the others. The optimizer was not told, and other tolls do the same, for a toll that is paid on
# every way changes no choice; the flows are unique.

everywhere = minimize_bilevel(
    lambda toll, x: total_time(x[0]), Drivers(), torch.ones(len(roads)), constraint=Positive(), rtol=1e-6
)
assert abs(float(everywhere.value) - float(total_time(best))) < 1e-6 * float(total_time(best))
assert torch.allclose(everywhere.y[0], best, atol=1e-3)
pigou = best * 2 * free_time * best / capacity.square()
assert torch.allclose(ddn.DeclarativeNode(Drivers())(pigou[None])[0], best, atol=1e-6)

# %%
# A real city charges at a few places. Here at two only, the roads that leave the middle; and at most six minutes.

gates = torch.tensor([begin == (1, 1) for begin, _ in roads])
limits = Box(torch.zeros(len(roads)), torch.where(gates, 6.0, 0.0))
few = minimize_bilevel(
    lambda toll, x: total_time(x[0]), Drivers(), torch.zeros(len(roads)), constraint=limits, rtol=1e-6
)
lost, won = (float(total_time(selfish) - value) for value in (total_time(best), few.value))
print(f"two gates: {float(few.value):.2f}, {100 * won / lost:.0f} % of the possible gain")
assert total_time(best) < few.value < total_time(selfish)

# A scan over equal tolls at both gates must not find anything better.
with torch.no_grad():
    scan = torch.linspace(0, 6, 31)
    answers = ddn.DeclarativeNode(Drivers())(scan[:, None] * gates)
    scanned = torch.stack([total_time(x) for x in answers])
assert float(scanned.min()) > float(few.value) - 1e-6

# %%
# The width of a road is its flow, the color how much longer it takes than an empty one; numbers are tolls in minutes.

figure, axes = plt.subplots(1, 3, figsize=(11, 3.9), layout="constrained")
cases = (
    ("no tolls", selfish, torch.zeros(len(roads))),
    ("tolls everywhere", everywhere.y[0], everywhere.theta),
    ("two gates", few.y[0], few.theta),
)
for axis, (title, flow, toll) in zip(axes, cases, strict=True):
    delay = times(flow) / free_time
    for (begin, end), x, slow, price in zip(roads, flow, delay, toll, strict=True):
        (r_0, c_0), (r_1, c_1) = begin, end
        color = plt.get_cmap("viridis_r")(min(1.0, (float(slow) - 1) / 3))
        axis.plot([c_0, c_1], [-r_0, -r_1], color=color, linewidth=0.5 + 3 * float(x), solid_capstyle="round", zorder=1)
        if price > 0.05:
            middle_of_road = ((c_0 + c_1) / 2, -(r_0 + r_1) / 2)
            box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}
            axis.text(*middle_of_road, f"{float(price):.1f}", ha="center", va="center", fontsize=8, bbox=box)
    axis.scatter([c for _, c in crossings], [-r for r, _ in crossings], color="black", s=25, zorder=2)
    axis.set_title(f"{title}: {float(total_time(flow)):.1f} minutes in all", fontsize=10)
    axis.set(xlim=(-0.25, 2.25), ylim=(-2.25, 0.25), aspect="equal")
    axis.axis("off")
scale = plt.cm.ScalarMappable(plt.Normalize(1, 4), "viridis_r")
figure.colorbar(scale, ax=axes, shrink=0.8, label="travel time, in that of an empty road")
plt.show()
