"""Normalised effective ranks of weights before the first step, without the code under test."""

import torch


def normalised_effective_rank(weight):
    """exp(H) / R of the singular values as fractions of their sum, R the smaller side.

    The eigenvalues of the float64 Gram matrix: random weights are conditioned well enough for that,
    and the largest ones (50,277 x 768) take seconds and not a minute.
    """
    matrix = weight.detach().flatten(1).double()
    gram = matrix @ matrix.T if len(matrix) < matrix.shape[1] else matrix.T @ matrix
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    shares = values / values.sum()
    return float((-torch.xlogy(shares, shares).sum()).exp()) / len(shares)
