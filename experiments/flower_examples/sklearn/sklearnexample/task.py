"""Logistic regression by scikit-learn, on handwritten digits; no torch at all."""

import warnings

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

Arrays = list[NDArray[np.float64]]
Data = tuple[NDArray[np.float64], NDArray[np.int64]]


def load_data(partition_id: int, num_partitions: int) -> tuple[Data, Data]:
    """This client's digits: to train on and to test on."""
    x, y = load_digits(return_X_y=True)
    x, y = x[partition_id::num_partitions] / 16, y[partition_id::num_partitions]
    return (x[:-60], y[:-60]), (x[-60:], y[-60:])


def create_model(local_epochs: int) -> LogisticRegression:
    """A model of zeros that goes on from where it is."""
    model = LogisticRegression(max_iter=local_epochs, warm_start=True, solver="lbfgs")
    model.classes_ = np.arange(10)
    set_model_params(model, [np.zeros((10, 64)), np.zeros(10)])
    return model


def get_model_params(model: LogisticRegression) -> Arrays:
    """Coefficients and intercepts."""
    return [model.coef_, model.intercept_]


def set_model_params(model: LogisticRegression, params: Arrays) -> None:
    """Replace coefficients and intercepts."""
    model.coef_, model.intercept_ = params


def fit(model: LogisticRegression, data: Data) -> None:
    """Train for the model's epochs, after which it need not have converged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(*data)
