"""Everything that a run writes to disk. These names need no torch; `checkpoint` and `weights` do."""

from twoviews.runs.files import use_caches_that_can_be_written
from twoviews.runs.find import epoch_file, find, folders, newest_unfinished, several
from twoviews.runs.folder import BACKBONE, CONFIG, LAST, MANIFEST, NEIGHBOURS, PREVIOUS, REPLAY, REPORT, SUMMARY, TRACE
from twoviews.runs.folder import RunFolder, StepFailed, check_data, create, identity, read_config, read_json, read_metrics
from twoviews.runs.lock import check_unlocked
from twoviews.runs.metrics import METRICS
