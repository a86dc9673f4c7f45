"""Experiments on real and generated data, and the command line that runs, resumes, compares and reports them."""

try:
    import filelock  # noqa: F401
    import jinja2  # noqa: F401
    import lightning_fabric  # noqa: F401
    import matplotlib  # noqa: F401
    import rich  # noqa: F401
    import sklearn  # noqa: F401
    import typer  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"`torchddn.experiments` needs {error.name}. Install it with `pip install 'torchddn[experiments]'`."
    ) from error
