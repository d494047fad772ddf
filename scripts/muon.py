"""Muon, an optimizer for matrices that needs about half the steps of Adam here (Jordan et al. 2024).

Each update is the momentum with all its singular values brought near 1. torch.optim.Muon does the same in bfloat16,
which processors without such instructions emulate slowly; this one stays in float32.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

# Of the polynomial a x + b x^3 + c x^5, whose iteration takes singular values in (0, 1] to around 1 in few steps.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """Momentum (Nesterov's), made orthogonal; every parameter must be a matrix [N, K]."""

    def __init__(self, matrices: Iterable[torch.Tensor], lr: float, momentum: float = 0.95) -> None:
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:
        """Change every matrix by its learning rate; a tall one a little more, so that outputs change alike."""
        for group in self.param_groups:
            for matrix in group["params"]:
                mean = self.state[matrix].setdefault("mean", torch.zeros_like(matrix))
                mean.lerp_(matrix.grad, 1 - group["momentum"])
                update = orthogonalized(matrix.grad.lerp(mean, group["momentum"]))
                rows, columns = matrix.shape
                matrix.add_(update, alpha=-group["lr"] * max(1.0, rows / columns) ** 0.5)


def orthogonalized(matrix: torch.Tensor, iterations: int = 5) -> torch.Tensor:
    """A matrix [N, K] with the same singular vectors and all singular values between about 0.7 and 1.2."""
    a, b, c = COEFFICIENTS
    x = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(iterations):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T
