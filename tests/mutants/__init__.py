"""Known faults of the field, which `make mutants` plants one at a time. Each must fail a test.

Most were published: in the reference projects, in other projects like ours, or in their issues.
"""

from mutants import after, api, config, cpu, data, distributed, losses, methods, models, optim, people, pixels, probes, runs, train, views

PARTS = (losses, methods, optim, views, cpu, models, probes, data, pixels, runs, config, train, distributed, after, api, people)
MUTANTS = [one for part in PARTS for one in part.MUTANTS]
