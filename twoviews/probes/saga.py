"""The linear probe by scikit-learn's SAGA, as in dkobak's project."""

import math
import warnings

import torch
from torch import Tensor

from twoviews.probes.linear import Linear


def saga(features: Tensor, labels: Tensor) -> tuple[Linear, int]:
    """Fit scikit-learn's logistic regression without penalty, by SAGA with its own defaults, as dkobak's project does.

    It usually reaches its limit of 100 passes before it converges; the caller prints the number of passes.

    Args:
        features, labels: (N, D) and (N,) with at least two classes.

    Returns:
        (the probe, passes over the data).
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=math.inf, solver="saga", random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of passes shows it
        model.fit(features.cpu().numpy(), labels.cpu().numpy())
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(model.classes_) == 2:  # sklearn has one logit then: of the second class against the first
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    rows = int(labels.max()) + 1
    probe = Linear(torch.zeros(rows, features.shape[1], dtype=features.dtype), torch.full((rows,), -math.inf, dtype=features.dtype))
    present = torch.from_numpy(model.classes_)  # a class without rows keeps a bias of -inf and is never predicted
    probe.weight[present], probe.bias[present] = weight.to(features.dtype), bias.to(features.dtype)
    return probe, int(model.n_iter_.max())
