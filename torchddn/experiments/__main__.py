"""``python -m torchddn.experiments``: the command ``torchddn``."""

from torchddn.experiments.cli import main

if __name__ == "__main__":
    main()
