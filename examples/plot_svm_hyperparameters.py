r"""
The hyperparameters of a support vector machine without a grid
==============================================================

A support vector machine has a price :math:`C` for mistakes and a width :math:`\gamma` of its kernel, and the usual way
to choose them is a grid of both, with a cross-validation at every point. But what they choose by has a derivative: the
decisions are the solution of an optimization problem that depends smoothly on :math:`C` and :math:`\gamma` as long as
the same examples support it. Klatzer and Pock (2015) follow the derivative instead:

.. math::

   \min_{C, \gamma} \; \frac1K \sum_k \ell\big(f_k(C, \gamma)\big)
   \quad \text{with} \quad
   f_k(C, \gamma) \; \text{the machine trained without fold } k

and :math:`\ell` the mean of the squared hinge, :math:`\max(0, 1 - t f)^2`, on fold :math:`k`. The accuracy itself would
not do, it is a staircase.
"""

import warnings

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import GridSearchCV, RandomizedSearchCV, StratifiedKFold, train_test_split
from sklearn.svm import SVC

from torchddn.bilevel.sklearn import BilevelSVC

# %%
# Odd digits against even ones, with 400 images to learn from, a tenth of them with the wrong label: without mistakes to
# pay for, the price would not matter. The other 1397 images are for the report at the end.

images, digits = load_digits(return_X_y=True)
X, X_test, odd, odd_test = train_test_split(images / 16, digits % 2, train_size=400, random_state=0, stratify=digits)
odd = np.where(np.random.default_rng(0).random(len(odd)) < 0.1, 1 - odd, odd)
cv = StratifiedKFold(5, shuffle=True, random_state=0)

machine = BilevelSVC(cv=cv, tol=1e-2).fit(X, odd)
num_solves = len(machine.cv_path_)
print(f"C = {machine.C_:.3g}, gamma = {machine.gamma_:.3g}")
print(f"cross-validation loss {machine.cv_path_.min():.4f} after {num_solves} lower solves, of five folds each")

# %%
# Grids of nine sizes over the same range, and a random search, all judged by the same loss on the same folds.


def loss(machine, X, odd):
    return -np.mean(np.maximum(0, 1 - (2 * odd - 1) * machine.decision_function(X)) ** 2)


def ranges(num):
    return {"C": np.logspace(-2, 3, num), "gamma": np.logspace(-4, 1, num)}


sizes = (3, 4, 5, 6, 7, 8, 9, 11, 15)
grids = [GridSearchCV(SVC(), ranges(size), cv=cv, scoring=loss).fit(X, odd) for size in sizes]
best_of_grid = np.array([-grid.best_score_ for grid in grids])
finest = grids[-1]
num_draws = 60
draws = RandomizedSearchCV(SVC(), ranges(1001), n_iter=num_draws, cv=cv, scoring=loss, random_state=0).fit(X, odd)
# The order of the draws means nothing, so the course of the search is the median over many orders.
orders = np.random.default_rng(0).permuted(np.tile(-draws.cv_results_["mean_test_score"], (1000, 1)), axis=1)
best_of_draws = np.median(np.minimum.accumulate(orders, axis=1), axis=0)

for size, value in zip(sizes, best_of_grid, strict=True):
    print(f"grid of {size:>2} x {size:>2}: {value:.4f} after {size**2:>3} lower solves")
print(f"random search: {best_of_draws[-1]:.4f} after {num_draws} lower solves")

# %%
# How many lower solves until the loss is within one percent of the least that any of them found? Sixty random draws are
# not enough in the median.

least = min(machine.cv_path_.min(), best_of_grid.min(), -draws.best_score_)
good = 1.01 * least
needed = int(np.argmax(machine.cv_path_ <= good)) + 1
good_grids = [size for size, value in zip(sizes, best_of_grid, strict=True) if value <= good]
print(f"hypergradients need {needed}, grids of sizes {good_grids} are fine enough")
assert machine.cv_path_.min() <= good
assert all(size**2 > 10 * needed for size in good_grids)
assert best_of_draws[-1] > good

# %%
# On images that none of them saw:

found, best = machine.score(X_test, odd_test), finest.best_estimator_.score(X_test, odd_test)
print(f"test accuracy: {100 * found:.1f} % by hypergradients, {100 * best:.1f} % by the finest grid")
assert abs(found - best) < 0.01

# %%
# Two things are not shown. The search looks at a few places and goes down from the best of them: it ends at a minimum,
# which need not be the least of all. And a small cross-validation loss is no aim by itself. With a width for every
# pixel, 64 of them, where no grid can follow, it falls much further, and on new images the machine gets worse: four
# hundred images are too few for so many hyperparameters.

with warnings.catch_warnings():
    warnings.simplefilter("ignore", ConvergenceWarning)  # we stop early on purpose
    many = BilevelSVC(width="per_feature", cv=cv, max_iter=30).fit(X, odd)
many_loss, many_accuracy = many.cv_path_.min(), many.score(X_test, odd_test)
print(f"64 widths: cross-validation loss {many_loss:.4f}, test accuracy {100 * many_accuracy:.1f} %")
assert many_loss < 0.8 * machine.cv_path_.min()
assert many_accuracy < found

# %%
# Left, the points at which the machine was solved, numbered in their order as far as there is room, on the loss as
# the finest grid has it. Right, what is gained by more solves.

fig, (ax_map, ax_cost) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
C, gamma = (ranges(sizes[-1])[name] for name in ("C", "gamma"))
losses = -finest.cv_results_["mean_test_score"].reshape(len(C), len(gamma))
levels = np.geomspace(losses.min(), losses.max(), 25)
shown = ax_map.contourf(gamma, C, losses, levels, cmap="viridis_r", norm="log")
fig.colorbar(shown, ax=ax_map, ticks=[0.1, 0.2, 0.5, 1.0], format="%.1f", label="cross-validation loss")
ax_map.plot(*np.meshgrid(gamma, C), ".", color="white", markersize=2, alpha=0.7)
ax_map.plot(machine.gamma_path_, machine.C_path_, "o", color="#D55E00", markersize=4)
seen = []
for place, point in enumerate(zip(machine.gamma_path_, machine.C_path_, strict=True), start=1):
    if all(np.abs(np.log10(np.divide(point, other))).max() > 0.2 for other in seen):
        ax_map.annotate(str(place), point, xytext=(4, 4), textcoords="offset points", fontsize=8)
        seen.append(point)
ax_map.plot(machine.gamma_, machine.C_, "*", color="#D55E00", markersize=14, markeredgecolor="white")
ax_map.set(xscale="log", yscale="log", xlabel=r"$\gamma$", ylabel="$C$")
ax_cost.plot(
    range(1, num_solves + 1), np.minimum.accumulate(machine.cv_path_), "o-", color="#D55E00", markersize=4,
    label="hypergradients",
)  # fmt: skip
ax_cost.plot(np.square(sizes), best_of_grid, "s--", color="black", markersize=4, label="grids, each by itself")
ax_cost.plot(range(1, num_draws + 1), best_of_draws, color="#009E73", label="random search, median")
ax_cost.set(xscale="log", xlabel="lower solves", ylabel="best cross-validation loss", ylim=(0.47, 0.7))
ax_cost.legend()
plt.show()
