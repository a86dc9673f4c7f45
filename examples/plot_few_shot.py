r"""
Learning to learn from few examples
===================================

Shown two examples each of four digits, tell the four apart. An embedding that makes this easy can be learned: each
step of training poses a small task, an *episode*, solves it by a classifier on top of the embedding, and asks how well
that does on other examples of the episode. The classifier is the solution of an optimization problem, and so a layer:
a support vector machine (MetaOptNet: Lee et al., 2019), or ridge regression (R2-D2: Bertinetto et al., 2019).

Training sees the digits 0 to 5, which turned and mirrored make 48 classes. The four digits of the final tasks, 6 to 9,
are new to the network.
"""

import matplotlib.pyplot as plt
import sklearn.datasets
import torch
from torch import nn

import torchddn as ddn

torch.manual_seed(0)
WAY, SHOT, QUERIES = 4, 2, 8

digits = sklearn.datasets.load_digits()
upright = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
turned = [upright.rot90(turns, (2, 3)) for turns in range(4)]
images = torch.cat([*turned, *(image.flip(3) for image in turned)])
labels = torch.cat([torch.tensor(digits.target) + 10 * view for view in range(8)])
seen, new = [digit + 10 * view for view in range(8) for digit in range(6)], list(range(6, 10))


def episodes(classes, num_episodes, generator):
    """Images to learn from, ``(B, WAY * SHOT, 1, 8, 8)``, and to be asked for, of classes that are 0, 1, ... here."""
    support, query = [], []
    for _ in range(num_episodes):
        chosen = torch.randperm(len(classes), generator=generator)[:WAY]
        drawn = []
        for k in chosen:
            items = (labels == classes[k]).nonzero().squeeze(1)
            drawn.append(items[torch.randperm(len(items), generator=generator)[: SHOT + QUERIES]])
        items = torch.stack(drawn)
        support.append(items[:, :SHOT].flatten())
        query.append(items[:, SHOT:].flatten())
    names = torch.arange(WAY)
    return (
        images[torch.stack(support)],
        names.repeat_interleave(SHOT),
        images[torch.stack(query)],
        names.repeat_interleave(QUERIES),
    )


# %%
# A network is an embedding and a head. Both heads take the features of the examples, of all episodes of a batch at
# once, and return logits for the queries; a learned scale makes these fit a cross entropy.


class FewShot(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.embedding = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        self.head, self.scale = head, nn.Parameter(torch.tensor(1.0))

    def features(self, x):
        return self.embedding(x.flatten(0, 1)).unflatten(0, x.shape[:2]) / 512**0.5

    def forward(self, support, names, query):
        logits = self.head(self.features(support), names, self.features(query))
        return self.scale.exp() * logits


class Ridge(ddn.nn.RidgeHead):
    """On rows of the identity in place of labels."""

    def forward(self, support, names, query):
        targets = nn.functional.one_hot(names, WAY).to(support).expand(len(support), -1, -1)
        return super().forward(support, targets, query)


class Pixels(nn.Module):
    """The support vector machine on the images as they are."""

    def forward(self, support, names, query):
        return ddn.functional.support_vector_machine(support.flatten(2) / 8, names, C=1.0).predict(query.flatten(2) / 8)


test = episodes(new, 200, torch.Generator().manual_seed(1))


def accuracy(network):
    """On the digits that training never saw, for each episode."""
    support, names, query, expected = test
    network.eval()
    with torch.no_grad():
        right = network(support, names, query).argmax(-1) == expected
    network.train()
    return right.double().mean(1)


# %%
# Training differentiates through the solutions of eight small programs in each step.

networks = {
    "support vector machine": FewShot(ddn.nn.SupportVectorMachine(1.0, num_classes=WAY, learnable_C=True)),
    "ridge regression": FewShot(Ridge(1.0, learnable_penalty=True)),
}
raw = accuracy(Pixels())
curves = {}
for name, network in networks.items():
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    curves[name] = [accuracy(network)]
    for step in range(300):
        support, names, query, expected = episodes(seen, 8, generator)
        logits = network(support, names, query)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), expected.repeat(8))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 50 == 0:
            curves[name].append(accuracy(network))

print(f"{'pixels':>24}: {100 * raw.mean():.1f} %")
for name, curve in curves.items():
    print(f"{name:>24}: {100 * curve[0].mean():.1f} % untrained, {100 * curve[-1].mean():.1f} % trained")
    assert curve[-1].mean() > curve[0].mean()
    assert curve[-1].mean() > raw.mean()

# %%
# The bands are two standard errors of the mean over the 200 tasks.

fig, ax = plt.subplots(figsize=(6, 3.8), layout="constrained")
for (name, curve), color in zip(curves.items(), ("#0072B2", "#D55E00"), strict=True):
    values = 100 * torch.stack(curve)
    middle, width = values.mean(1), 2 * values.std(1) / values.shape[1] ** 0.5
    steps = 50 * torch.arange(len(values))
    ax.plot(steps, middle, "o-", color=color, markersize=4, label=name)
    ax.fill_between(steps, middle - width, middle + width, color=color, alpha=0.2, linewidth=0)
ax.axhline(100 * raw.mean(), color="0.5", linestyle="--", label="support vector machine on pixels")
ax.set(xlabel="training step", ylabel="accuracy on new digits (%), 4-way 2-shot")
ax.legend(fontsize="small", loc="lower right", bbox_to_anchor=(1.0, 0.1))
plt.show()
