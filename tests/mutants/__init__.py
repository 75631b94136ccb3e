"""Known faults of the field, which `make mutants` plants one at a time. Each must fail a test.

Most were published: in the reference projects, in other projects like ours, or in their issues.
"""

from mutants import config, cpu, data, losses, models, optim, probes, runs, train, views

MUTANTS = [one for part in (losses, optim, views, cpu, models, probes, data, runs, config, train) for one in part.MUTANTS]
