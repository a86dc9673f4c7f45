r"""
A leader and its followers
==========================

Two firms sell the same good at the price :math:`P(q_1 + q_2) = a - b\,(q_1 + q_2)`, each at its own unit cost
:math:`c_i`. The leader chooses first, knowing that the follower will answer with what is best for itself:

.. math::

   \max_{q_1} \; q_1 P(q_1 + q_2) - c_1 q_1 \quad \text{subject to} \quad
   q_2 \in \arg\max_q \; q\, P(q_1 + q) - c_2 q.

It is the game of the tutorial on deep declarative networks. The follower is a lower problem, the leader's profit an
upper objective, and :func:`torchddn.bilevel.minimize_bilevel` does the rest.
"""

import warnings

import matplotlib.pyplot as plt
import torch

import torchddn as ddn
from torchddn.bilevel import Bilevel, Positive, hypergradient, minimize_bilevel, single_level

torch.set_default_dtype(torch.float64)
a, b, c_1, c_2 = 10.0, 1.0, 1.0, 2.0


class Follower(ddn.Problem):
    """Minimizes its loss, given what the leader sells and its own unit cost."""

    def objective(self, q, leader, cost):
        return -(q * (a - b * (leader + q)) - cost * q).sum()

    def initial(self, leader, cost):
        return torch.ones_like(leader)


def loss(leader, q):
    return -(leader * (a - b * (leader + q.sum())) - c_1 * leader).sum()


# %%
# With linear price and cost there is a closed form to compare with: the follower answers
# :math:`q_2 = (a - c_2 - b q_1) / 2b`, and the leader's best is :math:`q_1 = (a + c_2 - 2 c_1) / 2b`. In a market where
# nobody leads, Cournot's, each would sell a third of what the price allows.

start = torch.ones(1)
found = minimize_bilevel(loss, Follower(), start, data=(torch.tensor([c_2]),), constraint=Positive())
q_1 = (a + c_2 - 2 * c_1) / (2 * b)
q_2 = (a - c_2 - b * q_1) / (2 * b)
assert abs(float(found.theta) - q_1) < 1e-9
assert abs(float(found.y) - q_2) < 1e-9
cournot = (a + c_2 - 2 * c_1) / (3 * b)
print(f"leader {float(found.theta):.6f}, follower {float(found.y):.6f}, after {found.num_lower_solves} lower solves")
print(f"nobody leads: {cournot:.6f}")

# %%
# Nothing of this used the closed form. The other route writes the follower's optimality conditions as constraints of
# one problem; it shares no gradient with the first, and agrees.

once = single_level(loss, Follower(), start, data=(torch.tensor([c_2]),), constraint=Positive())
assert abs(float(once.theta) - q_1) < 1e-8


# %%
# Several followers answer the leader and each other: what they find is an equilibrium, where no follower gains by
# moving alone. It is no minimum of anybody's loss, but a root of the marginal losses of all, and a root is a lower
# problem too. With n followers who all make it at the leader's cost, each sells :math:`(a - c_1 - b q_1) / (n + 1) b`.


def marginal_losses(q, leader, cost):
    return -(a - b * (leader + q.sum()) - b * q - cost)


numbers = [1, 2, 4, 8]
quantities = []
for n in numbers:
    market = ddn.problem.Root(marginal_losses, torch.ones(n))
    many = minimize_bilevel(loss, market, start, data=(torch.full((1, n), c_1),), constraint=Positive())
    each = (a - c_1 - b * float(many.theta)) / ((n + 1) * b)
    assert torch.allclose(many.y, torch.full((1, n), each), rtol=1e-8)
    quantities.append((float(many.theta), float(many.y.sum()), -float(many.value)))

# %%
# Now the follower's plant has a capacity. Where the leader sells little, the follower sells all it can make, and does
# not answer small changes: the leader's gradient is another one on either side of the point where the capacity begins
# to bind, and at that point it is one-sided. The node says so, and ``Implicit(weakly_active=...)`` chooses the side.

capacity = 2.5
kink = (a - c_2 - 2 * b * capacity) / b


class LimitedFollower(Follower):
    def bounds(self, leader, cost):
        return 0.0, capacity


pairs = {
    side: Bilevel(
        loss,
        ddn.DeclarativeNode(LimitedFollower(), adjoint=ddn.Implicit(weakly_active=side)),
        data=(torch.tensor([c_2]),),
    )
    for side in ("active", "inactive")
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", ddn.DegenerateGradientWarning)  # it says what is shown here
    sides = {side: hypergradient(pair, None, torch.tensor([kink])) for side, pair in pairs.items()}
assert all(found.one_sided for found in sides.values())
held = -(a - 2 * b * kink - b * capacity - c_1)  # the follower does not answer
answering = held - b * kink / 2  # it makes room for half of what the leader adds
assert abs(float(sides["active"].gradient) - held) < 1e-9
assert abs(float(sides["inactive"].gradient) - answering) < 1e-9

limited = minimize_bilevel(pairs["active"], None, start)
assert abs(float(limited.theta) - q_1) < 1e-6

# %%
# Left, the leader's profit, with the slopes of both sides at the kink; the best point is the same here, since the
# capacity does not bind there; beyond 8 the follower leaves the market. Right, what leader and followers sell at equal
# cost: the leader's choice does not depend on their number, its profit does.

leader = torch.linspace(0.2, 9.0, 89)
with torch.no_grad():
    profits = torch.stack([-pairs["active"].value(q[None]) for q in leader])
    answers = ((a - c_2 - b * leader) / (2 * b)).clamp(min=0)
    free = torch.stack([-loss(q, answer) for q, answer in zip(leader, answers, strict=True)])
figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")
left.plot(leader, profits, color="#0072B2", label=f"follower makes at most {capacity}")
left.plot(leader, free, "--", color="#0072B2", alpha=0.5, label="no capacity")
height = -float(sides["active"].value)
for side, color, reach in (("active", "#D55E00", -1.6), ("inactive", "#009E73", 1.6)):
    step = torch.tensor([0.0, reach])
    slope = -float(sides[side].gradient)
    left.plot(kink + step, height + slope * step, color=color, linewidth=2.5, label=f"gradient, {side} side")
left.plot(float(limited.theta), -float(limited.value), "ko", label="found")
left.set(xlabel="leader sells", ylabel="leader's profit", ylim=(0, 14))
left.legend(fontsize="small", frameon=False, loc="lower center")
for i, (name, color) in enumerate((("leader", "#0072B2"), ("followers together", "#D55E00"), ("profit", "#000000"))):
    right.plot(numbers, [q[i] for q in quantities], "o-", color=color, label=name)
right.set(xlabel="number of followers", ylim=(0, 14), xticks=numbers)
right.legend(fontsize="small", frameon=False)
plt.show()
