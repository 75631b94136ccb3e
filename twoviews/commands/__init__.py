"""The verbs: one short file each, `run(cfg) -> exit code`, that composes the nouns of the package."""
