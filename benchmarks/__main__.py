"""``python -m benchmarks [name ...]``: runs the named benchmarks, or all, and prints Markdown tables.

Those of the ready nodes are also written to where the documentation shows them.
"""

import pathlib
import sys

import torch

from benchmarks import (
    bilevel,
    collection,
    constrained,
    derivatives,
    hyperparameters,
    least_squares,
    nodes,
    peers,
    pooling,
    projections,
    qp_backends,
    quadratic,
    scaling,
    sets,
    structure,
    transport,
)
from benchmarks.timing import machine

BENCHMARKS = {
    "bilevel": bilevel.run,
    "collection": collection.run,
    "constrained": constrained.run,
    "derivatives": derivatives.run,
    "hyperparameters": hyperparameters.run,
    "least_squares": least_squares.run,
    "nodes": nodes.run,
    "peers": peers.run,
    "pooling": pooling.run,
    "projections": projections.run,
    "qp_backends": qp_backends.run,
    "quadratic": quadratic.run,
    "scaling": scaling.run,
    "sets": sets.run,
    "structure": structure.run,
    "transport": transport.run,
}

SHOWN = ("least_squares", "pooling", "projections", "scaling", "sets", "transport")
TABLES = pathlib.Path(__file__).parent.parent / "docs" / "_static" / "ready"


def main(names: list[str]) -> None:
    """Prints the tables of the benchmarks in ``names``."""
    unknown = set(names) - BENCHMARKS.keys()
    if unknown:
        sys.exit(f"unknown benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print(f"{machine()}\n")
    for name in names or BENCHMARKS:
        tables = BENCHMARKS[name]()
        print(tables)
        if name in SHOWN:
            TABLES.mkdir(exist_ok=True)
            (TABLES / f"{name}.md").write_text(tables.replace("### ", "#### "))


if __name__ == "__main__":
    main(sys.argv[1:])
