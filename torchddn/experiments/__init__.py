"""Experiments on real data, and the command line that runs and compares them."""

try:
    import matplotlib  # noqa: F401
    import rich  # noqa: F401
    import sklearn  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"`torchddn.experiments` needs {error.name}. Install it with `pip install 'torchddn[experiments]'`."
    ) from error
