"""Configuration: `load` reads a command line, `schema.RULES` says which values each key accepts."""

from twoviews.config.load import FLAGS, PATH_KEYS, Config, check, load, show_config, sweep, word
from twoviews.config.schema import VERBS
