"""A wrong value for every argument of every ready node, and what the error must say."""

import importlib

import torch
from problems import randn

from torchddn import functional, nn

POLICY = "must be one of 'warn', 'raise', 'nan', 'ignore', got 'explode'."
X = randn(2, 3)
IMAGE = torch.ones(1, 2, 4, 4)
ONES = torch.ones(3, dtype=torch.float64)
ROWS = torch.ones(1, 3, dtype=torch.float64)
EYE = torch.eye(3, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 1])


def call(function, **given):
    return lambda **changes: function(**{**given, **changes})


def module(cls, x):
    """The module is made and called: a number that only an input can prove wrong is refused then."""
    return lambda **changes: cls(**changes)(x)


def held(wrong):
    """Of a module: it has the arguments of the function, except what is given to its ``forward``."""
    return {name: value for name, value in wrong.items() if name not in ("x", "X", "solution")}


def convex(**changes):
    cp = importlib.import_module("cvxpy")
    x, a = cp.Variable(3), cp.Parameter(3)
    problem = cp.Problem(cp.Minimize(cp.norm(x - a)))
    return nn.ConvexProgram(**{"problem": problem, "parameters": [a], "variables": [x], **changes})


FAILURE = {"on_failure": ("explode", POLICY)}
KERNELS = {"compile": ("yes", "compile")}
FLAG = {"solution": ("yes", "solution")}
AXES = {"dim": (7, "dim"), "keepdim": ("yes", "keepdim")}
POOL = {"penalty": ("l1", "'l1'"), "alpha": (-1.0, "alpha"), **FAILURE}
POOL_MODULE = {**POOL, "learnable_alpha": ("yes", "learnable_alpha")}
COUNTS = {"weights": (2.0, "(weights=...)` must be a tensor"), "mask": (True, "(mask=...)` must be a tensor of bool")}
WINDOW = {"kernel_size": (0, "kernel_size"), "stride": (0, "stride"), "padding": (-1, "padding")}
BALL = {
    "p": (0.5, "must be at least 1, got 0.5"),
    "radius": (-1.0, "radius"),
    "center": ("here", "center"),
    "dim": (7, "dim"),
    "plateau": ("flat", "plateau"),
    **FAILURE,
}
LEARNED = {"radius": (-1.0, "radius"), "learnable_radius": ("yes", "learnable_radius")}
BALL_MODULE = {**BALL, **LEARNED}
VECTORS = {"x": (3, "(x=...)"), "dim": (7, "dim"), **FAILURE}
SIMPLEX = {**VECTORS, "radius": (-1.0, "radius"), **FLAG}
CAPPED = {**SIMPLEX, "upper": (-1.0, "upper")}
TOP_K = {**VECTORS, "k": (4, "(k=...)` must be at most"), "gamma": (-1.0, "gamma"), **FLAG}
WEIGHTED = {**SIMPLEX, "weights": (-1.0, "weights")}
GROUPS = {**SIMPLEX, "group_dim": (7, "must name axes")}
BOX = {**VECTORS, **FLAG, "lower": (float("nan"), "lower"), "upper": ("high", "upper")}
HALFSPACE = {**VECTORS, **FLAG, "normal": (torch.zeros(3), "normal"), "offset": ("far", "offset")}
AFFINE = {**VECTORS, **FLAG, "A": (torch.ones(2, 4), "(A=...)"), "b": ("far", "(b=...)")}
MONOTONE = {**VECTORS, **FLAG, "increasing": ("up", "increasing")}
ISOTONIC = {**MONOTONE, "weights": (-1.0, "weights")}
VARIATION = {**VECTORS, **FLAG, "strength": (-1.0, "strength")}
MATRIX = {"X": (3, "(X=...)"), **FAILURE, **FLAG}
PSD = {**MATRIX, "minimum": ("low", "minimum")}
SOLVE = {**FAILURE, **FLAG}
EIGEN = {"X": (X, "must be square matrices"), "k": (4, "must be at most the size of the matrices, 3, got 4."), **SOLVE}
TRANSPORT = {
    "gamma": (-1.0, "gamma"),
    "atol": (-1.0, "atol"),
    "max_steps": (0, "max_steps"),
    "normalize": ("yes", "normalize"),
    **FAILURE,
}
MARGINALS = {"r": (3, "(r=...)"), "c": (3, "(c=...)")}
RELAXED = {"marginal_penalty": (-1.0, "marginal_penalty"), "mass": (-1.0, "mass")}
CLOUDS = {"x": (3, "(x=...)"), "y": (3, "(y=...)"), **MARGINALS, **TRANSPORT}
GRADIENT = {"gradient": ("full", "gradient")}
PROGRAM = {
    "Q": (torch.ones(2, 2, dtype=torch.float64), "(Q=...)` must have shape (*B, m, m) with m = 3"),
    "q": (3, "(q=...)` must be a tensor"),
    "A": (ROWS, "(b=...)` is missing"),
    "b": (ONES, "(A=...)` is missing"),
    "G": (ROWS, "(h=...)` is missing"),
    "h": (ONES, "(G=...)` is missing"),
    "lower": ("low", "(lower=...)` must be a tensor"),
    "upper": ("high", "(upper=...)` must be a tensor"),
    "smoothing": (-1.0, "smoothing"),
    "weakly_active": ("both", "weakly_active"),
    "backend": ("daqp", "(backend=...)` must be 'torchddn' or 'qpsolvers:<name>', got 'daqp'."),
    "infeasible": ("explode", "infeasible"),
    "check": ("yes", "check"),
    "max_steps": (0, "max_steps"),
    **FAILURE,
}

BIRKHOFF = {
    "X": (3, "(X=...)"),
    "r": (3, "(r=...)"),
    "c": (3, "(c=...)"),
    "max_steps": (0, "max_steps"),
    **SOLVE,
}
POLYHEDRON = {
    **{name: PROGRAM[name] for name in ("A", "b", "G", "h", "lower", "upper", "weakly_active", "infeasible")},
    "x": (3, "(x=...)` must be a tensor"),
    "max_steps": (0, "max_steps"),
    **SOLVE,
}

HEAD = {
    "support": (3, "(support=...)` must be a tensor"),
    "gamma": (-1.0, "gamma"),
    "kernel": ("cubic", "'cubic'"),
    **FAILURE,
}
MACHINE = {
    **HEAD,
    "labels": (LABELS.double(), "(labels=...)` must be a tensor of integers"),
    "C": (-1.0, "(C=...)` must be positive"),
    "num_classes": (1, "num_classes"),
    "max_steps": (0, "max_steps"),
}
RIDGE = {**HEAD, "targets": (3, "(targets=...)` must be a tensor"), "penalty": (-1.0, "penalty")}
RANKS = {
    "sequence": (3, "(sequence=...)` must be a tensor"),
    "C": (-1.0, "(C=...)` must be positive"),
    "epsilon": (-1.0, "epsilon"),
    "loss": ("huber", "'huber'"),
    "smoothing": (-1.0, "smoothing"),
    "frames": ("median", "'median'"),
    "max_steps": (0, "max_steps"),
    **FAILURE,
}
CENTER = {
    "G": (ROWS[0], "(G=...)` must have shape (*B, q, m)"),
    "A": (ROWS, "(b=...)` is missing"),
    "max_steps": (0, "max_steps"),
    **FAILURE,
}

READY_NODES = {
    functional.robust_pool: (
        call(functional.robust_pool, x=X),
        {"x": (3, "robust_pool(x=...)"), **POOL, **AXES, **COUNTS, **KERNELS, **FLAG},
    ),
    functional.robust_vector_pool: (
        call(functional.robust_vector_pool, points=X),
        {"points": (3, "points"), **POOL, **COUNTS, **KERNELS, **FLAG},
    ),
    functional.project_sphere: (call(functional.project_sphere, x=X), {"x": (3, "(x=...)"), **BALL, **FLAG}),
    functional.project_ball: (call(functional.project_ball, x=X), {"x": (3, "(x=...)"), **BALL, **FLAG}),
    functional.project_simplex: (call(functional.project_simplex, x=X), SIMPLEX),
    functional.sparsemax: (call(functional.sparsemax, x=X), {**VECTORS, **FLAG}),
    functional.entmax15: (call(functional.entmax15, x=X), {**VECTORS, **FLAG}),
    functional.project_capped_simplex: (call(functional.project_capped_simplex, x=X), CAPPED),
    functional.soft_top_k: (call(functional.soft_top_k, x=X, k=1), TOP_K),
    functional.project_weighted_l1_ball: (call(functional.project_weighted_l1_ball, x=X, weights=1.0), WEIGHTED),
    functional.project_l21_ball: (call(functional.project_l21_ball, x=X), GROUPS),
    functional.project_box: (call(functional.project_box, x=X), BOX),
    functional.project_halfspace: (call(functional.project_halfspace, x=X, normal=ONES), HALFSPACE),
    functional.project_affine: (call(functional.project_affine, x=X, A=ROWS), AFFINE),
    functional.project_monotone: (call(functional.project_monotone, x=X), MONOTONE),
    functional.isotonic_regression: (call(functional.isotonic_regression, x=X), ISOTONIC),
    functional.total_variation: (call(functional.total_variation, x=X), VARIATION),
    functional.project_second_order_cone: (call(functional.project_second_order_cone, x=X), {**VECTORS, **FLAG}),
    functional.project_psd: (call(functional.project_psd, X=EYE), PSD),
    functional.project_birkhoff: (call(functional.project_birkhoff, X=EYE), BIRKHOFF),
    functional.project_polyhedron: (call(functional.project_polyhedron, x=X), POLYHEDRON),
    functional.project_orthogonal: (call(functional.project_orthogonal, X=X.mT), MATRIX),
    functional.project_rotation: (call(functional.project_rotation, X=X[:, :2]), MATRIX),
    functional.weighted_least_squares: (
        call(functional.weighted_least_squares, A=X, b=X[:, 0]),
        {
            "A": (3.0, "weighted_least_squares(A=...)"),
            "b": (X[0], "(b=...)` must have shape (*B, 2) or (*B, 2, k)"),
            "w": (-1.0, "(w=...)` must be finite and not negative, got -1.0."),
            "ridge": (-1.0, "(ridge=...)` must be finite and not negative, got -1.0."),
            **SOLVE,
        },
    ),
    functional.total_least_squares: (
        call(functional.total_least_squares, A=X.mT, b=X[0]),
        {
            "A": (randn(3, 5), "at least as many rows as columns, got 3 x 5"),
            "b": (3.0, "total_least_squares(b=...)"),
            **SOLVE,
        },
    ),
    functional.top_eigenvectors: (call(functional.top_eigenvectors, X=torch.eye(3)), EIGEN),
    functional.bottom_eigenvectors: (call(functional.bottom_eigenvectors, X=torch.eye(3)), EIGEN),
    functional.banded_solve: (
        call(functional.banded_solve, band=torch.ones(3, 4), b=torch.ones(4)),
        {"band": (X, "(band=...)` must have shape (*B, 2 w + 1, n)"), "b": (3.0, "banded_solve(b=...)"), **SOLVE},
    ),
    functional.tridiagonal_solve: (
        call(
            functional.tridiagonal_solve,
            lower=torch.ones(1),
            diagonal=torch.ones(2),
            upper=torch.ones(1),
            b=torch.ones(2),
        ),
        {
            "lower": (torch.ones(2), "(lower=...)` must have shape (*B, 1) beside a diagonal of 2"),
            "diagonal": (3.0, "tridiagonal_solve(diagonal=...)"),
            "upper": (torch.ones(2), "(upper=...)` must have shape (*B, 1) beside a diagonal of 2"),
            "b": (3.0, "tridiagonal_solve(b=...)"),
            **SOLVE,
        },
    ),
    functional.optimal_transport: (
        call(functional.optimal_transport, cost=X),
        {"cost": (3, "cost"), **MARGINALS, **TRANSPORT, **RELAXED, **GRADIENT, **FLAG},
    ),
    functional.transport_cost: (
        call(functional.transport_cost, cost=X),
        {"cost": (3, "cost"), **MARGINALS, **TRANSPORT, **RELAXED, "regularized": ("yes", "regularized")},
    ),
    functional.sinkhorn_divergence: (
        call(functional.sinkhorn_divergence, x=X, y=X),
        {**CLOUDS, "metric": ("l1", "metric")},
    ),
    functional.transport_between: (call(functional.transport_between, x=X, y=X), CLOUDS),
    functional.quadratic_program: (call(functional.quadratic_program, Q=EYE, q=ONES), {**PROGRAM, **FLAG}),
    functional.support_vector_machine: (
        call(functional.support_vector_machine, support=EYE, labels=LABELS, kernel="rbf"),
        {**MACHINE, **FLAG},
    ),
    functional.ridge_head: (
        call(functional.ridge_head, support=EYE, targets=EYE, kernel="rbf"),
        {**RIDGE, **FLAG},
    ),
    functional.rank_pooling: (
        call(functional.rank_pooling, sequence=X),
        {**RANKS, "mask": (True, "(mask=...)` must be a tensor of bool"), **FLAG},
    ),
    functional.analytic_center: (
        call(functional.analytic_center, G=EYE, h=ONES),
        {**CENTER, "h": (ONES[:2], "(h=...)` must have shape"), "b": (ONES, "(A=...)` is missing"), **FLAG},
    ),
    nn.RobustPool: (module(nn.RobustPool, X), {**POOL_MODULE, **AXES, **KERNELS}),
    nn.RobustPool2d: (module(nn.RobustPool2d, IMAGE), {**POOL_MODULE, **WINDOW, **KERNELS}),
    nn.RobustVectorPool: (module(nn.RobustVectorPool, X), {**POOL_MODULE, **KERNELS}),
    nn.RobustVectorPool2d: (module(nn.RobustVectorPool2d, IMAGE), {**POOL_MODULE, **WINDOW, **KERNELS}),
    nn.ProjectSphere: (module(nn.ProjectSphere, X), BALL_MODULE),
    nn.ProjectBall: (module(nn.ProjectBall, X), BALL_MODULE),
    nn.ProjectSimplex: (module(nn.ProjectSimplex, X), {**held(SIMPLEX), **LEARNED}),
    nn.Sparsemax: (module(nn.Sparsemax, X), held(VECTORS)),
    nn.Entmax15: (module(nn.Entmax15, X), held(VECTORS)),
    nn.ProjectCappedSimplex: (module(nn.ProjectCappedSimplex, X), {**held(CAPPED), **LEARNED}),
    nn.SoftTopK: (
        lambda **c: nn.SoftTopK(**{"k": 1, **c})(X),
        {**held(TOP_K), "learnable_gamma": ("yes", "learnable_gamma")},
    ),
    nn.ProjectWeightedL1Ball: (
        lambda **c: nn.ProjectWeightedL1Ball(**{"weights": 1.0, **c})(X),
        {**held(WEIGHTED), **LEARNED},
    ),
    nn.ProjectL21Ball: (module(nn.ProjectL21Ball, X), {**held(GROUPS), **LEARNED}),
    nn.ProjectBox: (module(nn.ProjectBox, X), held(BOX)),
    nn.ProjectHalfspace: (lambda **c: nn.ProjectHalfspace(**{"normal": ONES, **c})(X), held(HALFSPACE)),
    nn.ProjectAffine: (lambda **c: nn.ProjectAffine(**{"A": ROWS, **c})(X), held(AFFINE)),
    nn.ProjectMonotone: (module(nn.ProjectMonotone, X), held(MONOTONE)),
    nn.IsotonicRegression: (module(nn.IsotonicRegression, X), held(MONOTONE)),
    nn.TotalVariation: (
        module(nn.TotalVariation, X),
        {**held(VARIATION), "learnable_strength": ("yes", "learnable_strength")},
    ),
    nn.ProjectSecondOrderCone: (module(nn.ProjectSecondOrderCone, X), held(VECTORS)),
    nn.ProjectPSD: (module(nn.ProjectPSD, EYE), held(PSD)),
    nn.ProjectBirkhoff: (module(nn.ProjectBirkhoff, EYE), {"max_steps": (0, "max_steps"), **FAILURE}),
    nn.ProjectPolyhedron: (module(nn.ProjectPolyhedron, X), held(POLYHEDRON)),
    nn.ProjectOrthogonal: (module(nn.ProjectOrthogonal, X.mT), held(MATRIX)),
    nn.ProjectRotation: (module(nn.ProjectRotation, X[:, :2]), held(MATRIX)),
    nn.RidgeRegression: (
        lambda **changes: nn.RidgeRegression(**changes)(X, X, X),
        {
            "ridge": (-1.0, "RidgeRegression(ridge=...)"),
            "intercept": ("yes", "intercept"),
            "learnable_ridge": ("yes", "learnable_ridge"),
            **FAILURE,
        },
    ),
    nn.TopEigenvectors: (module(nn.TopEigenvectors, torch.eye(3)), {"k": (0, "k"), **FAILURE}),
    nn.BottomEigenvectors: (module(nn.BottomEigenvectors, torch.eye(3)), {"k": (0, "k"), **FAILURE}),
    nn.OptimalTransport: (
        module(nn.OptimalTransport, X),
        {**TRANSPORT, **GRADIENT, "learnable_gamma": ("yes", "learnable_gamma")},
    ),
    nn.SupportVectorMachine: (
        lambda **c: nn.SupportVectorMachine(**{"kernel": "rbf", **c})(EYE, LABELS, EYE),
        {
            **{name: value for name, value in MACHINE.items() if name not in ("support", "labels")},
            "learnable_C": ("yes", "learnable_C"),
        },
    ),
    nn.RidgeHead: (
        lambda **c: nn.RidgeHead(**{"kernel": "rbf", **c})(EYE, EYE, EYE),
        {
            **{name: value for name, value in RIDGE.items() if name not in ("support", "targets")},
            "learnable_penalty": ("yes", "learnable_penalty"),
        },
    ),
    nn.RankPooling: (
        module(nn.RankPooling, X),
        {**{name: value for name, value in RANKS.items() if name != "sequence"}, "learnable_C": ("yes", "learnable_C")},
    ),
    nn.AnalyticCenter: (lambda **c: nn.AnalyticCenter(**{"G": EYE, **c})(ONES), CENTER),
    nn.QuadraticProgram: (
        lambda **c: nn.QuadraticProgram(**{"Q": EYE, **c})(**({} if "q" in c else {"q": ONES})),
        PROGRAM,
    ),
    nn.ConvexProgram: (
        convex,
        {
            "problem": (3, "must be a `cvxpy.Problem`, got int"),
            "parameters": (3, "must be a list of `cvxpy.Parameter`, got int"),
            "variables": (3, "must be a list of `cvxpy.Variable`, got int"),
            "gp": ("yes", "(gp=...)` must be True or False"),
            "solver_args": ({"eps": 1.0}, "Clarabel has no option 'eps'"),
            "num_workers": (0, "(num_workers=...)` must be a positive integer"),
            "check": ("yes", "(check=...)` must be True or False"),
            **FAILURE,
        },
    ),
}
