"""Ready nodes: functions whose forward and backward passes exploit the structure of their problem.

They take any batch axes, ``(*B, ...)``, are differentiable to every order in reverse and forward mode, and work under
the transforms of ``torch.func``. :mod:`torchddn.nn` has the modules of the same things.
"""

from torchddn.functional.pooling import robust_pool, robust_vector_pool
from torchddn.functional.projection import project_ball, project_sphere

__all__ = ["project_ball", "project_sphere", "robust_pool", "robust_vector_pool"]
