"""What a selection computes its scores from, and these scores."""

import numpy as np
import oracle
from hostile import values
from tensors import tensor


def scored_on_the_fly(device, metric, name, shape, dtypes, layout="contiguous", seed=0):
    """A weight, what else the metric reads (by argument), and the scores in NumPy."""
    weight, grad = (values(name, shape, dtype, seed + 100 * i) for i, dtype in enumerate(dtypes))
    norm = np.abs(values(name, shape[-1:] or (1,), seed=seed + 200))
    inputs, reads_grad = {}, oracle.SELECT_METRICS[metric][1]
    if reads_grad:
        inputs["grads"] = tensor(grad, dtypes[1], device, layout)
    if metric == "wanda":
        inputs["input_norm"] = tensor(norm, device=device)
    kind = oracle.compute_type(weight, grad if reads_grad else None)
    scores = oracle.entry_values(metric, weight, grad, norm, kind=kind).reshape(shape)
    return tensor(weight, dtypes[0], device, layout), inputs, scores
