"""Configuration: `load` reads a command line, `schema.RULES` says which values each key accepts."""

from twoviews.config.advice import against_collapse, warnings
from twoviews.config.load import FLAGS, PATH_KEYS, Config, check, load, stored, word
from twoviews.config.schema import VERBS
from twoviews.config.sweep import run_sweep, show_config
from twoviews.config.views import view_differences
