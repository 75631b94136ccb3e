"""`Embedder` inside scikit-learn: its own checks of estimators, copies, pipelines and names of columns."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import check_estimator

from twoviews import embedder
from twoviews.data import READERS
from twoviews.embedder import Embedder
from twoviews.images import inputs

COLOUR, GRAY = "simclr-blood_cells-thin32", "simclr-fashion_mnist-thin32"


def check(estimator: Embedder) -> dict[str, list[dict[str, Any]]]:
    """Return the results of scikit-learn's checks by their status: passed, failed or skipped."""
    results: dict[str, list[dict[str, Any]]] = {"passed": [], "failed": [], "skipped": []}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the class does not inherit from BaseEstimator, because scikit-learn may be missing
        for result in check_estimator(estimator, on_fail=None, on_skip=None):
            results[result["status"]].append(result)
    return results


def test_checks_fail_only_where_their_numbers_are_no_images() -> None:
    results = check(Embedder(GRAY, device="cpu"))
    assert len(results["passed"]) > 10
    for result in results["failed"]:
        assert "images" in str(result["exception"]), (result["check_name"], result["exception"])


def test_all_checks_pass_if_any_row_of_numbers_is_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of the checks have 1 to 20 numbers of any size: here they become images, one pixel for each number."""
    real = inputs.inputs

    def pad(images: Any, reading: Any) -> Any:
        if hasattr(images, "toarray"):  # sparse, which is refused
            return real(images, reading)
        rows = np.asarray(images, np.float64)
        pixels = np.zeros((len(rows), 64))
        pixels[:, : rows.shape[1]] = 1 / (1 + np.exp(-rows))
        return real(pixels, reading)

    monkeypatch.setattr(embedder, "inputs", pad)
    results = check(Embedder(GRAY, device="cpu", precision="fp64"))  # one check allows a difference of 1e-7 between batches
    assert {result["check_name"]: result["exception"] for result in results["failed"]} == {}


def test_a_copy_has_the_same_arguments_and_no_state() -> None:
    fitted = Embedder(GRAY, runs_dir="elsewhere", value_range=(0, 255), on_bad="skip").fit()
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params() == {**Embedder().get_params(), **copy.get_params()}
    assert not hasattr(copy, "file_")
    assert copy.set_params(background="black", on_bad="stop") is copy
    assert (copy.background, copy.on_bad) == ("black", "stop")
    assert fitted.set_params(run=COLOUR).fit().description().startswith(COLOUR)
    assert fitted.set_params(run=GRAY).description().startswith(GRAY)
    with pytest.raises(ValueError, match="Embedder: no parameter 'size': expected run, runs_dir"):
        copy.set_params(size=3)


def test_it_is_a_step_of_a_pipeline_and_of_a_search() -> None:
    arrays = READERS["blood_cells"](None)
    rows = np.arange(0, 10_000, 50)
    X, y = arrays.train_images[rows].reshape(len(rows), -1), arrays.train_labels[rows]
    model = make_pipeline(Embedder(COLOUR, device="cpu"), LogisticRegression(max_iter=300))
    search = GridSearchCV(model, {"embedder__run": [COLOUR], "logisticregression__C": [0.01, 1]}, cv=2).fit(X, y)
    assert search.score(X, y) > 0.5
    columns = make_pipeline(Embedder(COLOUR), FunctionTransformer(feature_names_out="one-to-one"))
    columns.fit(X[:4])
    assert list(columns.get_feature_names_out()[:2]) == ["h0", "h1"]
    assert len(columns.get_feature_names_out()) == Embedder(COLOUR).transform(X[:1]).shape[1]
