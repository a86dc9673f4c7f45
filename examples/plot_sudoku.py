r"""
Learning the rules of sudoku
============================

A small sudoku has four rows, four columns and four blocks, and in each of them the numbers one to four. A board is 64
numbers :math:`y`, one for each cell and number, that are one or zero. The rules are linear equations
:math:`A y = b`, and the solution of

.. math:: \min_y \tfrac{\epsilon}{2} |y|^2 - p^\top y \quad\text{subject to}\quad A y = b, \quad y \ge 0,

with :math:`p` marking the numbers that are given, completes a board. Nobody tells the layer the rules: we show it
puzzles with their solutions, and it learns :math:`A` and :math:`b`. This is the experiment of OptNet (Amos and Kolter,
2017).
"""

import itertools

import matplotlib.pyplot as plt
import torch
from torch import nn

import torchddn as ddn

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)

# %%
# There are 288 boards. A puzzle has some of their numbers, such that only one board fits. The puzzles to be solved in
# the end come from 88 boards of which training sees none.

PLACES = [list(range(4 * i, 4 * i + 4)) for i in range(4)] + [list(range(i, 16, 4)) for i in range(4)]
PLACES += [[8 * i + 2 * j + k for k in (0, 1, 4, 5)] for i in range(2) for j in range(2)]
orders = list(itertools.permutations(range(4)))
rows = torch.tensor(list(itertools.product(orders, repeat=4))).flatten(1)
boards = rows[torch.stack([rows[:, place].sort(1).values.eq(torch.arange(4)).all(1) for place in PLACES]).all(0)]
assert len(boards) == 288
solved = nn.functional.one_hot(boards, 4).flatten(1).double()


def puzzles(which, num_puzzles, generator):
    """Numbers that are given, ``(num_puzzles, 64)``, and the boards that they determine."""
    found = []
    while sum(len(part) for part, _ in found) < num_puzzles:
        board = solved[which[torch.randint(len(which), (500,), generator=generator)]]
        num_given = torch.randint(6, 10, (500, 1), generator=generator)
        kept = torch.rand(500, 16, generator=generator).argsort(1).argsort(1) < num_given
        given = board * kept.repeat_interleave(4, dim=1)
        unique = (given @ solved.T == num_given).sum(1) == 1
        found.append((given[unique], board[unique]))
    return (torch.cat(parts)[:num_puzzles] for parts in zip(*found, strict=True))


generator = torch.Generator().manual_seed(0)
order = torch.randperm(288, generator=generator)
given, board = puzzles(order[:200], 1500, generator)
test_given, test_board = puzzles(order[200:], 300, generator)

# %%
# The layer has 40 equations. Writing :math:`b = A z` with a positive :math:`z` keeps them consistent while they are
# learned.


class Sudoku(nn.Module):
    def __init__(self, num_equations=40):
        super().__init__()
        self.A = nn.Parameter(0.3 * torch.randn(num_equations, 64))
        self.log_z = nn.Parameter(torch.full((64,), 0.25).log())
        self.program = ddn.nn.QuadraticProgram(Q=0.1 * torch.eye(64), lower=0.0, check=False)

    def forward(self, given):
        return self.program(q=-given, A=self.A, b=self.A @ self.log_z.exp())


def solved_boards(layer, given, board):
    """The share of the boards of which every cell is right."""
    with torch.no_grad():
        cells = layer(given).view(-1, 16, 4).argmax(2)
    return (cells == board.view(-1, 16, 4).argmax(2)).all(1).double().mean().item()


layer = Sudoku()
optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
batch, losses, shares = 100, [], [solved_boards(layer, test_given, test_board)]
for _ in range(15):
    for items in torch.randperm(len(given)).split(batch):
        optimizer.zero_grad()
        loss = (layer(given[items]) - board[items]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    shares.append(solved_boards(layer, test_given, test_board))
print(
    f"Of the boards that were held out, {100 * shares[0]:.0f} % were right at first, {100 * shares[-1]:.0f} % are now."
)
assert shares[-1] > 0.9

# %%
# Do the learned equations say what the rules say? The rules span 40 of 64 dimensions. A board that obeys them changes
# within the other 24, and there the learned matrix must be zero.

rules = torch.stack(
    [
        torch.zeros(16, 4).index_fill(0, torch.tensor(place), 1.0).mul(torch.eye(4)[number]).flatten()
        for place in PLACES
        for number in range(4)
    ]
    + [torch.zeros(16, 4).index_fill(0, torch.tensor([cell]), 1.0).flatten() for cell in range(16)]
)
assert torch.linalg.matrix_rank(rules) == 40
_, _, basis = torch.linalg.svd(rules)
with torch.no_grad():
    A = layer.A
    outside = (A @ basis[40:].T).norm() / A.norm()
    random = (24 / 64) ** 0.5
assert outside < 0.2
print(f"Share of the learned matrix outside the rules: {outside:.2f}; of a random one: {random:.2f}.")

fig, (left, middle, right) = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
left.semilogy(losses, color="#0072B2")
left.set(xlabel="step", ylabel="mean squared error")
middle.plot([100 * share for share in shares], "o-", color="#D55E00", markersize=4)
middle.set(xticks=range(0, 16, 5), xlabel="epoch", ylabel="boards solved, held out (%)", ylim=(-3, 103))
with torch.no_grad():
    example = layer(test_given[:1]).view(16, 4)
right.imshow(example.max(1).values.view(4, 4), cmap="Blues", vmin=0, vmax=1.6)
for cell in range(16):
    is_given = test_given[0].view(16, 4)[cell].any()
    number = str(example[cell].argmax().item() + 1)
    right.text(cell % 4, cell // 4, number, ha="center", va="center", size=18, weight="bold" if is_given else "normal")
for line in (-0.5, 1.5, 3.5):
    right.axhline(line, color="black")
    right.axvline(line, color="black")
right.set(xticks=[], yticks=[], xlabel="a board that was held out (bold: given)")
plt.show()
