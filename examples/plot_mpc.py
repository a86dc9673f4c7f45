r"""
Learning what a controller wants
================================

A model-predictive controller looks :math:`T` steps ahead, chooses the controls that are best there, and applies the
first of them:

.. math:: \min_u \sum_{t=1}^{T} x_t^\top \operatorname{diag}(w)\, x_t + \rho\, u_{t-1}^2
          \quad\text{subject to}\quad x_{t+1} = A x_t + B u_t, \quad |u_t| \le 1.

That is a quadratic program, and so a layer. We watch an expert drive a cart, and learn its weights :math:`w` from what
it does, limits included: where the expert brakes with full force the gradient is zero, and it does no harm.
"""

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchddn as ddn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

STEPS, RHO, DT = 15, 0.5, 0.2
A, B = torch.tensor([[1.0, DT], [0.0, 1.0]]), torch.tensor([[0.5 * DT**2], [DT]])


class Controller(nn.Module):
    """The first control for each state, ``(B, 2)``: position and velocity."""

    def __init__(self, weights):
        super().__init__()
        self.log_weights = nn.Parameter(torch.tensor(weights).log())
        # All states as one linear function of the first state and the controls: x = free x_0 + forced u.
        powers = [torch.linalg.matrix_power(A, t) for t in range(STEPS + 1)]
        self.free = torch.cat(powers[1:])
        blocks = [[powers[t - s] @ B if s <= t else 0 * B for s in range(STEPS)] for t in range(STEPS)]
        self.forced = torch.cat([torch.cat(row, dim=1) for row in blocks])

    def forward(self, x):
        weighted = self.log_weights.exp().repeat(STEPS).unsqueeze(1) * self.forced
        Q = 2 * (self.forced.mT @ weighted + RHO * torch.eye(STEPS))
        q = 2 * x @ self.free.mT @ weighted
        return ddn.functional.quadratic_program(0.5 * (Q + Q.mT), q, lower=-1.0, upper=1.0)[:, :1]


expert = Controller([1.0, 0.3]).requires_grad_(False)
states = torch.randn(200, 2) * torch.tensor([0.6, 0.5])
controls = expert(states)
print(f"The expert is at its limits in {100 * (controls.abs() > 0.999).double().mean():.0f} % of the states.")

# %%
# The learner starts with other weights. One matrix :math:`Q` serves all states, so its gradient is the sum over them.

learner = Controller([0.05, 2.0])
before = Controller([0.05, 2.0]).requires_grad_(False)
optimizer = torch.optim.Adam(learner.parameters(), lr=0.2)
losses, weights = [], []
for _ in range(200):
    optimizer.zero_grad()
    loss = (learner(states) - controls).square().mean()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
    weights.append(learner.log_weights.detach().exp())
print("Weights learned:", learner.log_weights.detach().exp().numpy().round(3))
assert losses[-1] < 1e-4 * losses[0]
torch.testing.assert_close(learner.log_weights.exp(), torch.tensor([1.0, 0.3]), rtol=0.05, atol=0.0)

# %%
# What was learned from single decisions drives the cart as the expert does.


def drive(controller, x, num_steps=40):
    path = [x]
    with torch.no_grad():
        for _ in range(num_steps):
            x = x @ A.mT + controller(x) @ B.mT
            path.append(x)
    return torch.cat(path)


start = torch.tensor([[2.0, 0.5]])
fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
left.semilogy(losses, color="#0072B2")
left.set(xlabel="step", ylabel="mean squared error of the control")
for values, name, color in zip(torch.stack(weights).T, ("position", "velocity"), ("#009E73", "#D55E00"), strict=True):
    middle.plot(values, color=color, label=f"weight of the {name}")
for value in (1.0, 0.3):
    middle.axhline(value, color="0.6", linewidth=0.8, zorder=0)
middle.set(xlabel="step", ylabel="weight (gray: the expert's)")
middle.legend(fontsize="small")
seconds = DT * torch.arange(41)
right.plot(seconds, drive(expert, start)[:, 0], color="0.6", linewidth=4, label="expert")
right.plot(seconds, drive(before, start)[:, 0], "--", color="#D55E00", label="before learning")
right.plot(seconds, drive(learner, start)[:, 0], color="#0072B2", label="learned")
right.set(xlabel="time", ylabel="position of the cart")
right.legend(fontsize="small")
plt.show()
torch.testing.assert_close(drive(learner, start), drive(expert, start), rtol=0.0, atol=0.05)
