"""The commands: one short file each, `run(cfg) -> exit code`."""
