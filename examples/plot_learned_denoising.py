r"""
Image denoising with a learned Markov random field
==================================================

Total variation cleans an image by asking for few differences between neighbors. Is this what images of digits are
like? Instead of asking so, one can learn what to ask. The clean image is the minimum of an energy, a Markov random
field, with filters :math:`f_k`, weights :math:`w_k` and scales :math:`a_k`,

.. math::

   y(x, \theta) = \arg\min_y \; \tfrac12 |y - x|^2
                  + \sum_k w_k \sum_p \phi\big((f_k * y)_p;\, a_k\big),
   \qquad \phi(z; a) = \sqrt{z^2 + a^2} - a ,

and the upper objective is how far the minima are from the true images of a training set. That is how Samuel and Tappen
(2009) and Domke (2012) learn energies. With two filters, the differences to the right and down, and both weights equal,
it is total variation, up to how it rounds corners and the kink of the absolute value.
"""

import matplotlib.pyplot as plt
import sklearn.datasets
import torch
from torch.nn.functional import conv2d, pad

import torchddn as ddn
from torchddn.bilevel import Box, minimize_bilevel
from torchddn.solvers import LBFGS

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
NUM_TRAINING, NUM_TEST, NOISE = 100, 400, 0.25

images = torch.tensor(sklearn.datasets.load_digits().images) / 16
images = images[torch.randperm(len(images))]
noisy = images + NOISE * torch.randn_like(images)
clean, clean_test = images[:NUM_TRAINING], images[NUM_TRAINING : NUM_TRAINING + NUM_TEST]
noisy, noisy_test = noisy[:NUM_TRAINING], noisy[NUM_TRAINING : NUM_TRAINING + NUM_TEST]

# %%
# Both energies are problems of one image. Edges repeat their last pixel. Weights and scales are learned as logarithms,
# so that they stay positive.


def smooth_abs(squares, a):
    return (squares + a * a).sqrt() - a


class RandomField(ddn.Problem):
    def objective(self, y, theta, x):
        framed = pad(y[None, None], (1, 1, 1, 1), mode="replicate")
        response = conv2d(framed, theta["filters"].unsqueeze(1))[0]
        energy = smooth_abs(response.square(), theta["log_scale"].exp()[:, None, None]).sum((1, 2))
        return 0.5 * (y - x).square().sum() + (theta["log_weight"].exp() * energy).sum()

    def initial(self, theta, x):
        return x


class TotalVariation(ddn.Problem):
    def objective(self, y, theta, x):
        framed = pad(y[None, None], (0, 1, 0, 1), mode="replicate")[0, 0]
        squares = (framed[1:, :-1] - y).square() + (framed[:-1, 1:] - y).square()
        energy = smooth_abs(squares, theta["log_scale"].exp()).sum()
        return 0.5 * (y - x).square().sum() + theta["log_weight"].exp() * energy

    def initial(self, theta, x):
        return x


def learn(problem, theta, limits, max_steps):
    """The lower problems of all training images are one batch."""
    return minimize_bilevel(
        lambda theta, y: (y - clean).square().mean(),
        ddn.DeclarativeNode(problem, solver=LBFGS()),
        theta,
        data=(noisy,),
        constraint=limits,
        rtol=1e-3,
        max_steps=max_steps,
        on_failure="ignore",  # we stop early on purpose
    )


def psnr(y, truth):
    """Of each image, in decibels."""
    return -10 * (y - truth).square().mean((1, 2)).log10()


def denoise(problem, theta, x):
    node = ddn.DeclarativeNode(problem, solver=LBFGS())
    return node({name: value.expand(len(x), *value.shape) for name, value in theta.items()}, x)


# %%
# The baseline has the same chance: strength and smoothing of total variation are learned from the same images, by the
# same call, until nothing is to be gained any more. Smoothing helps a little: the strokes of digits have soft edges. A
# scan over strengths with next to no smoothing makes sure that the classical method has nothing better to offer.

variation = learn(
    TotalVariation(),
    {"log_weight": torch.tensor(0.1).log(), "log_scale": torch.tensor(0.1).log()},
    {"log_weight": None, "log_scale": Box(-7.0, 3.0)},
    max_steps=50,
)
print({name: round(float(value.exp()), 3) for name, value in variation.theta.items()}, variation.status.name)
assert variation.status is ddn.Status.CONVERGED

scan = []
with torch.no_grad():
    for strength in torch.linspace(0.06, 0.2, 8):
        theta = {"log_weight": strength.log(), "log_scale": torch.tensor(0.003).log()}
        scan.append(float((denoise(TotalVariation(), theta, noisy) - clean).square().mean()))
print(f"training error of total variation: {float(variation.value):.5f}, barely smoothed {min(scan):.5f}")
assert float(variation.value) < min(scan)

# %%
# The field starts from eight filters of three by three pixels, those of the cosine transform but the constant one, with
# equal weights. In 88 upper variables the descent goes on and on; thirty steps get most of what there is.

wave = torch.cos(torch.outer(torch.arange(3.0), 2 * torch.arange(3.0) + 1) * torch.pi / 6)
wave = wave / wave.norm(dim=1, keepdim=True)
filters = torch.einsum("ai,bj->abij", wave, wave).reshape(9, 3, 3)[1:]
start = {
    "filters": filters,
    "log_weight": torch.full((8,), 0.05).log(),
    "log_scale": torch.full((8,), 0.1).log(),
}
limits = {"filters": None, "log_weight": Box(-15.0, 3.0), "log_scale": Box(-5.0, 3.0)}
field = learn(RandomField(), start, limits, max_steps=30)
print(f"{field.num_steps} upper steps, {field.num_lower_solves} lower solves of {NUM_TRAINING} images each")

# %%
# On images that neither has seen:

with torch.no_grad():
    answers = {
        "noisy": noisy_test,
        "total variation": denoise(TotalVariation(), variation.theta, noisy_test),
        "field, as it starts": denoise(RandomField(), start, noisy_test),
        "field, learned": denoise(RandomField(), field.theta, noisy_test),
    }
quality = {name: psnr(y, clean_test) for name, y in answers.items()}
for name, values in quality.items():
    print(f"{name:>20}: {values.mean():.2f} dB")
gain = quality["field, learned"] - quality["total variation"]
error = float(gain.std()) / NUM_TEST**0.5
print(
    f"gain over total variation {gain.mean():.2f} +- {error:.2f} dB, better on {100 * (gain > 0).double().mean():.0f} %"
)
assert gain.mean() > 0.3
assert gain.mean() > 5 * error

# %%
# What is not shown: that this is the best denoiser there is. Images have only 64 pixels, the noise is of one strength,
# known from the training images, and networks learn more. The field has 88 numbers, and what it does to an image is the
# minimum of a function that one can write down.
#
# Left, held-out digits; right, the learned filters, the most important ones first, and the upper objective.

fig = plt.figure(figsize=(11, 5), layout="constrained")
left, right = fig.subfigures(1, 2, width_ratios=(1.35, 1))
rows = {"clean": clean_test, **{name: y for name, y in answers.items() if name != "field, as it starts"}}
axes = left.subplots(len(rows), 8)
for line, (name, pictures) in zip(axes, rows.items(), strict=True):
    for ax, picture in zip(line, pictures, strict=False):
        ax.imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, fontsize=9)
top, bottom = right.subfigures(2, 1)
strength = field.theta["log_weight"].exp() * field.theta["filters"].norm(dim=(1, 2))
for ax, k in zip(top.subplots(2, 4).flat, strength.argsort(descending=True), strict=True):
    kernel = field.theta["filters"][k]
    ax.imshow((kernel / kernel.abs().max()).numpy(), cmap="RdBu", vmin=-1, vmax=1)
    ax.set(xticks=[], yticks=[])
    ax.set_title(f"{strength[k]:.3f}", fontsize=8, pad=2)
ax = bottom.subplots()
ax.plot([step.value for step in field.history], "o-", color="#0072B2", markersize=3, label="field")
ax.axhline(float(variation.value), color="#D55E00", linestyle="--", label="total variation, converged")
ax.set(xlabel="upper step", ylabel="training error")
ax.legend(fontsize="small")
plt.show()
