"""Trackers follow a run's metrics where `track=` names them: TensorBoard, Weights & Biases, trackio and MLflow. None can stop a run.

What they receive are the rows of `metrics.jsonl`. A resumed run goes on in the same curve: it first sends what the tracker lacks.
"""

from twoviews.trackers.followers import Followers, check
