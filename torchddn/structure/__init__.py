r"""What the matrix of an adjoint looks like: declared or found, read with few products, solved by what suits it.

The system of a gradient is, per item, ``K u = v`` with ::

    K = [ H  A' ]      H = L_yy, (m, m);   A the rows of the constraints, (r, m)
        [ A  0  ]

of which only products are known. Rows and columns of variables at a bound are those of the identity, and rows of
constraints that do not count have ``-mu_i = v_i`` (``optimality.residual``). A dense solve takes m products and
``(m + r)^3 / 3``. Most problems that people write need neither: an objective that sums over the variables has a
diagonal H, which is one product and a division.

*Found* (``search``): at the first backward pass of a problem, hypotheses are tested in the order of their price. A few
products read H as if it were diagonal, in blocks, banded, diagonal plus low rank; one product with a generic vector
tells whether it is. If it is none of these and m is moderate, its pattern tells the order of least bandwidth
(``ordering``) and the colors. Where rows of constraints have entries takes a few dozen products (``places``). The items
of the batch count together. What is found is kept for the problem's class, code and sizes (``memory``).

*Read* (``reading``): at every backward pass the numbers are read again, in one call with all vectors at once, but for
those that were the same for all items and in two passes (``constant``).

*Verified*: the answer of every solve is certified with the true product, and a structure that fails is abandoned for
good. So a finding that does not hold for other data costs one dense solve, and never correctness.
"""

from torchddn.structure.believed import MATRIX_FREE, Believed, agree, check_declared, operator, settled
from torchddn.structure.curvature import of_curvature
from torchddn.structure.memory import Belief, forget
from torchddn.structure.system import Product, generic
from torchddn.structure.unmasked import unmasked

__all__ = [
    "MATRIX_FREE",
    "Belief",
    "Believed",
    "Product",
    "agree",
    "check_declared",
    "forget",
    "generic",
    "of_curvature",
    "operator",
    "settled",
    "unmasked",
]
