"""Optimisers and learning-rate schedules."""

from twoviews.optim.optimizers import LARS, Muon, build
from twoviews.optim.schedules import learning_rate, resolve_learning_rate
