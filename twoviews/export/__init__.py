"""A trained backbone for other programs: weights, a description, a model card, and the lines that load it."""

from twoviews.export.formats import FORMATS
from twoviews.export.trained import Trained, read
from twoviews.export.write import check, write
