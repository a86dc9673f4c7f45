r"""
Learning a regularizer from many small tasks
============================================

Twenty examples do not tell which of 64 pixels to trust. A hundred tasks of twenty examples each do, if the pixels are
the same ones: what the tasks have in common can be learned from those that are solved already, and then helps with the
next. Here it is the camera. A quarter of its pixels are noisy, it does not say which, and every task is to tell four
digits apart from five examples of each.

A task is solved by ridge regression on the examples, with a penalty :math:`\theta_j` for each pixel,

.. math::

   W(\theta) = \arg\min_W \sum_i |W x_i - t_i|^2 + \sum_{jk} \theta_j W_{kj}^2 .

The upper objective is the error on other images of the same tasks, all of them at once. The digits of the final tasks,
6 to 9, are in none of the tasks that the penalties are learned from.
"""

import matplotlib.pyplot as plt
import sklearn.datasets
import sklearn.metrics
import torch

import torchddn as ddn
from torchddn.bilevel import minimize_bilevel

torch.set_default_dtype(torch.float64)
WAY, SHOT, QUERIES = 4, 5, 10

digits = sklearn.datasets.load_digits()
images, labels = torch.tensor(digits.data) / 16, torch.tensor(digits.target)
is_noisy = torch.zeros(64, dtype=torch.bool)
is_noisy[torch.randperm(64, generator=torch.Generator().manual_seed(5))[:16]] = True

targets = torch.eye(WAY).repeat_interleave(SHOT, 0) - 1 / WAY
wanted = torch.eye(WAY).repeat_interleave(QUERIES, 0) - 1 / WAY


def tasks(classes, num_tasks, noise, seed):
    """Images to learn from, ``(B, WAY * SHOT, 64)``, and to be asked for, ``(B, WAY * QUERIES, 64)``."""
    generator = torch.Generator().manual_seed(seed)
    photos = images + noise * is_noisy * torch.randn(images.shape, generator=generator)
    support, query = [], []
    for _ in range(num_tasks):
        for k in torch.randperm(len(classes), generator=generator)[:WAY]:
            items = (labels == classes[k]).nonzero().squeeze(1)
            drawn = items[torch.randperm(len(items), generator=generator)[: SHOT + QUERIES]]
            support.append(drawn[:SHOT])
            query.append(drawn[SHOT:])
    support, query = (photos[torch.cat(part)].view(num_tasks, -1, 64) for part in (support, query))
    center = support.mean(1, keepdim=True)
    return support - center, query - center


# %%
# A penalty of its own for each pixel is one penalty of 1 for all after the pixel was divided by the root of its own.
# With the ready node for ridge regression the lower level is one line; its solutions are the scores of the queries.


def lower(log_theta, support, query):
    scale = (-0.5 * log_theta).exp()
    return ddn.functional.ridge_head(support * scale, targets, 1.0).predict(query * scale)


def upper(log_theta, scores):
    return (scores - wanted).square().mean()


def learn(start, data):
    return minimize_bilevel(upper, lower, start, data=data, rtol=1e-2).theta


def accuracy(log_theta, data):
    """Of each task."""
    return (lower(log_theta, *data).argmax(2) == wanted.argmax(1)).double().mean(1)


# %%
# The rival is the best single penalty for all pixels, learned from the same tasks in the same way. What follows is
# repeated with more and more tasks to learn from; 200 tasks with new digits judge. Five tasks are too few for 64
# penalties, ten are enough.

seen, new, noise = range(6), range(6, 10), 0.5
final = tasks(new, 200, noise, seed=1)
nums = [5, 10, 20, 50, 100, 300]
learned = {"one penalty": [], "one for each pixel": []}
for num in nums:
    data = tasks(seen, num, noise, seed=0)
    shared = learn(torch.zeros(1), data)
    learned["one penalty"].append(shared)
    learned["one for each pixel"].append(learn(shared.expand(64), data))

results = {name: torch.stack([accuracy(theta, final) for theta in thetas]) for name, thetas in learned.items()}
for num, one, each in zip(nums, *results.values(), strict=True):
    gain = each - one
    error = float(gain.std()) / len(gain) ** 0.5
    accuracies = f"{100 * one.mean():.1f} % with one, {100 * each.mean():.1f} % with 64"
    print(f"{num:>4} tasks: {accuracies}, gain {100 * gain.mean():.1f} +- {100 * error:.1f}")
    assert (gain.mean() > 5 * error) == (num > 5)
assert gain.mean() > 0.03

# The penalties also say which pixels are noisy, which nobody told them.
log_theta = learned["one for each pixel"][-1]
auc = sklearn.metrics.roc_auc_score(is_noisy, log_theta)
print(f"penalties point at the noisy pixels with an area under the ROC curve of {auc:.3f}")
assert auc > 0.9

# %%
# What is learned has to be what tasks have in common. The less noise, the less of that there is in the pixels. In a
# camera without faults 64 penalties fit the digits they see: better on other tasks with those, and not on new digits.

for level in (0.0, 0.25, 0.5, 1.0):
    data = tasks(seen, 300, level, seed=0)
    one = learn(torch.zeros(1), data)
    each = learn(one.expand(64), data)
    gains = [accuracy(each, t) - accuracy(one, t) for t in (tasks(seen, 200, level, 2), tasks(new, 200, level, 1))]
    (old_mean, old_error), (new_mean, new_error) = (
        (100 * float(gain.mean()), 100 * float(gain.std()) / len(gain) ** 0.5) for gain in gains
    )
    print(
        f"noise {level:.2f}: gain {old_mean:.1f} +- {old_error:.1f} on seen digits, "
        f"{new_mean:.1f} +- {new_error:.1f} on new ones"
    )
    assert old_mean > 2 * old_error
    assert (new_mean > 5 * new_error) == (level >= 0.5)

# %%
# Left, a photo of each new digit; then the noisy pixels and the penalties that were learned; right, the accuracy on new
# digits by the number of tasks learned from. Bands are two standard errors over the 200 final tasks.

fig = plt.figure(figsize=(11, 3.6), layout="constrained")
left, middle, right = fig.subfigures(1, 3, width_ratios=(2.2, 4, 4.5))
generator = torch.Generator().manual_seed(0)
for ax, digit in zip(left.subplots(2, 2).flat, new, strict=True):
    photo = images[labels == digit][0] + noise * is_noisy * torch.randn(64, generator=generator)
    ax.imshow(photo.view(8, 8).numpy(), cmap="gray_r", vmin=-1, vmax=1.5)
    ax.axis("off")
truth_ax, theta_ax = middle.subplots(1, 2)
truth_ax.imshow(is_noisy.view(8, 8).numpy(), cmap="gray_r")
truth_ax.set_title("noisy pixels", fontsize=10)
shown = theta_ax.imshow(log_theta.exp().log10().view(8, 8).numpy(), cmap="viridis")
theta_ax.set_title(r"learned $\log_{10} \theta$", fontsize=10)
middle.colorbar(shown, ax=(truth_ax, theta_ax), location="bottom", shrink=0.7)
for ax in (truth_ax, theta_ax):
    ax.set(xticks=[], yticks=[])
ax = right.subplots()
for (name, values), color in zip(results.items(), ("#D55E00", "#0072B2"), strict=True):
    center, width = 100 * values.mean(1), 200 * values.std(1) / values.shape[1] ** 0.5
    ax.semilogx(nums, center, "o-", color=color, markersize=4, label=name)
    ax.fill_between(nums, center - width, center + width, color=color, alpha=0.2, linewidth=0)
ax.set(xlabel="tasks learned from", ylabel="accuracy on new digits (%)")
ax.legend(loc="center right", fontsize="small")
plt.show()
