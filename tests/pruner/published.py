"""Wanda as published, in NumPy, and the tokens that it is tested with."""

import numpy as np
import torch


def batches():
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(2, 40, (3, 12), generator=generator) for _ in range(4)]


def published_masks(weight, scaler_row, sparsity, nm):
    """Algorithm 1 of the paper and its authors' N:M form: True = pruned. ``scaler_row`` is the mean square."""
    metric = np.abs(weight) * np.sqrt(scaler_row.reshape(1, -1))
    mask = np.zeros_like(metric, bool)
    if nm is None:
        order = np.argsort(metric, axis=-1, kind="stable")[:, : int(metric.shape[1] * sparsity)]
        np.put_along_axis(mask, order, True, axis=-1)
        return mask
    n, m = nm
    for start in range(0, metric.shape[1], m):
        order = np.argsort(metric[:, start : start + m], axis=1, kind="stable")[:, : m - n]
        np.put_along_axis(mask, start + order, True, axis=1)
    return mask


def run_under(handles, model):
    """All batches through a model while hooks look on."""
    with torch.no_grad():
        for tokens in batches():
            model(tokens)
    for handle in handles:
        handle.remove()
