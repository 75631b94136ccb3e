"""Optimisers and learning-rate schedules."""

from twoviews.optim.optimizers import LARC, LARS, Muon, build, clip
from twoviews.optim.schedules import cosine, learning_rate, resolve_learning_rate
