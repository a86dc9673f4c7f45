"""The package as pip and import see it."""

import importlib
import importlib.metadata
import re
import subprocess
import sys
import textwrap

import pytest

import torchddn

NAMESPACES = [
    "torchddn",
    "torchddn.bilevel",
    "torchddn.functional",
    "torchddn.nn",
    "torchddn.solvers",
    "torchddn.linear",
    "torchddn.datasets",
    "torchddn.models",
    "torchddn.explain",
    "torchddn.testing",
    "torchddn.plotting",
]

# Python takes None for "not installed", whoever asks: an import statement or `importlib.util.find_spec`.
WITHOUT_EXTRAS = """
import importlib, pkgutil, sys

sys.modules.update(dict.fromkeys({extras!r}))
import torchddn
"""


def without_extras(code: str) -> subprocess.CompletedProcess[str]:
    modules = {"scikit-learn": "sklearn", "import-linter": "importlinter", "pillow": "PIL"}
    requirements = importlib.metadata.requires("torchddn") or []
    names = {re.split(r"[\[<>=!~ ;]", line)[0] for line in requirements if "extra ==" in line}
    extras = {modules.get(name, name.replace("-", "_")) for name in names - {"torchddn"}}
    assert {"sklearn", "scipy", "matplotlib", "typer"} <= extras
    program = WITHOUT_EXTRAS.format(extras=extras) + textwrap.dedent(code)
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_core_needs_only_torch_and_numpy():
    result = without_extras("""
        for module in pkgutil.walk_packages(torchddn.__path__, "torchddn."):
            part = module.name.removeprefix("torchddn.")
            if not part.startswith(("bilevel.sklearn", "datasets", "experiments", "plotting")):
                importlib.import_module(module.name)
        print("imported")
    """)
    assert result.stdout == "imported\n", result.stderr


def test_tools_are_imported_when_they_are_asked_for():
    result = without_extras("""
        import torch
        lazy = ("torchddn.testing", "torchddn.plotting")
        assert not any(name in sys.modules for name in lazy)
        from torchddn import *
        assert torchddn.testing.check_node(torch.sin, torch.ones(2, 3)).passed
        try:
            torchddn.plotting
        except ImportError as error:
            print(error)
        try:
            torchddn.plot
        except AttributeError as error:
            print(error)
    """)
    assert result.stdout.splitlines() == [
        "`torchddn.plotting` needs matplotlib. Install it with `pip install 'torchddn[experiments]'`.",
        "module 'torchddn' has no attribute 'plot'",
    ], result.stderr


@pytest.mark.parametrize(
    "module, extra",
    [
        ("torchddn.bilevel.sklearn", "experiments"),
        ("torchddn.datasets.digits", "data"),
        ("torchddn.experiments.cli", "experiments"),
        ("torchddn.plotting", "experiments"),
    ],
)
def test_missing_extra_is_named(module, extra):
    result = without_extras(f"import {module}")
    assert result.returncode == 1
    message = result.stderr.strip().splitlines()[-1]
    assert message.startswith("ImportError: `torchddn.")
    assert f"pip install 'torchddn[{extra}]'" in message


def test_version_is_that_of_the_installed_package():
    assert importlib.metadata.version("torchddn") == torchddn.__version__


@pytest.mark.parametrize("name", NAMESPACES)
def test_public_names_are_unique_and_importable(name):
    namespace = importlib.import_module(name)
    assert len(set(namespace.__all__)) == len(namespace.__all__)
    assert [public for public in namespace.__all__ if not hasattr(namespace, public)] == []
