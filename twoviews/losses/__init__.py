"""Loss functions: pure functions, in float32 or better even under autocast."""

from twoviews.losses.assignments import sinkhorn
from twoviews.losses.contrastive import decoupled, info_nce, info_nce_in_batch, nt_xent, supcon
from twoviews.losses.precision import exact, without_autocast
from twoviews.losses.similarity import cosine, cross_entropy
from twoviews.losses.statistics import barlow_twins, vicreg, whitened
