"""Support vector machine with an RBF or a linear kernel."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import groupby, product
from numbers import Real
from operator import itemgetter
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import softmax
from sklearn.svm import SVC
from sklearn.utils import gen_batches
from sklearn.utils._param_validation import Interval, StrOptions

from featkit.blocks import is_large, release_pages, row_blocks
from featkit.heads.base import (
    Floats,
    LogitHead,
    Trial,
    UnfitDataError,
    binary_to_two_columns,
    checked_groups,
    checked_weights,
    fit_in_threads,
    logits_to_scores,
    single_threaded_blas,
)
from featkit.heads.scaling import SCALES, ScaledRows, apply_scale, fit_scale, unit_norm
from featkit.heads.streamed import StreamedFit, fit_streamed, squared_hinge
from featkit.parallel import blas_threads

MAX_KERNEL_ROWS = 16_384
"""Training rows up to which the machines are exact, from a kernel matrix of float64: 2 GiB."""

LANDMARKS = 2_048
"""Landmarks of the Nystroem approximation for more rows."""

MAX_APPROXIMATE_ROWS = 2**18
"""Training rows that its weights are fitted on: their features take 2 GiB of float32."""

SMALLEST_EIGENVALUE = 1e-5
"""Of the kernel matrix of the landmarks, relative to the largest: directions below are dropped."""

BLOCK_VALUES = 2**22
"""Kernel values per block of rows in prediction: 32 MiB."""

FOLDS = 3
"""Parts of the training set in the cross-validation of the calibration."""

ENOUGH_IMAGES = 1_000
"""Held-out images after which no further fold is fitted: the calibration has a single parameter."""

MAX_HELD_OUT = 0.1
"""Share of the rows up to which an approximate machine does without those that are held out."""

DEFAULT_SLOPE = 8.0
"""Slope of the scores without a cross-validation, which is close to that of Caltech-101."""

UNCALIBRATED = "svm: too few images to calibrate the scores, which use a default"

SLOPES = (1e-3, 1e4)
"""Smallest and largest slope."""

SEARCH_CS = (1.0, 3.0, 10.0)
SEARCH_GAMMAS: tuple[str | float, ...] = ("scale", 0.3)
SEARCH_KERNELS: tuple[tuple[str | None, str | float], ...] = (
    *product(("root", "l2", "standard"), SEARCH_GAMMAS),
    (None, "scale"),
)
"""Combinations of scale and gamma: without scaling, the meaning of a number for gamma depends on
the unit of the features."""


class _TrainingData(NamedTuple):
    """Training data of the calibration.

    Attributes:
        kernel: kernel values of the samples ``(n, n)``.
        codes: positions of the labels in ``classes_``, ``(n,)``.
        weights: sample weights ``(n,)``.
        folds: fold of each row ``(n,)``, see ``_folds``; -1 for a row that is left out.
    """

    kernel: NDArray[np.float64]
    codes: NDArray[np.intp]
    weights: NDArray[np.float64]
    folds: NDArray[np.intp]


class _Samples(NamedTuple):
    """Checked training data: features ``(n, d)``; class codes, weights and groups ``(n,)``."""

    x: Floats
    codes: NDArray[np.intp]
    weights: NDArray[np.float64]
    groups: NDArray[Any] | None


class _ApproximateData(NamedTuple):
    """Training data of an approximate machine.

    Attributes:
        features: ``(n, r)``, in which the kernel is linear.
        landmarks: scaled rows ``(m, d)``.
        whitening: ``(m, r)``: ``features`` are the kernel values of the landmarks times it.
        samples: the n samples.
        total: number of training images, of which n were drawn.
    """

    features: Floats
    landmarks: Floats
    whitening: Floats
    samples: _Samples
    total: int


class SVMHead(LogitHead):
    """Support vector machine with an RBF or a linear kernel.

    Features are scaled as by ``LinearHead``. One binary machine is trained for each pair of classes
    (libsvm); the one-vs-rest decision value of a class is the number of pairs that it wins, with
    ties broken by the margins. The class with the highest value is predicted.

    The logit of a class is its smallest pairwise margin, against its closest rival, times a slope;
    the scores are the softmax of the logits. The slope is fitted by maximum likelihood on margins
    of training images that the machines were not trained on (3-fold cross-validation, of which the
    folds after the first 1,000 held-out images are left out): Platt scaling with a single parameter
    for all pairs. If another class than the predicted one has the highest score, the two scores are
    exchanged.

    Kernel values are computed as matrix products: all of them before fitting, for up to 16,384
    rows, and in blocks of rows for prediction.

    With more rows the machine is approximate, and ``warnings_`` says so: the kernel is that of
    2,048 landmarks drawn from the training images (Nystroem), and one linear machine with squared
    hinge loss is fitted for each class against the rest, as scikit-learn's ``LinearSVC`` does, on
    at most 262,144 rows drawn with equal chance. The logit of a class is its decision value times a
    slope, which is fitted on about 1,000 training images that the machines were not trained on.
    With a linear kernel the features themselves take the place of the landmarks.

    If ``fit`` gets groups, such as patients, no group is in two folds of the calibration. With
    scikit-learn's metadata routing, meta-estimators such as ``GridSearchCV`` pass their ``groups``
    on to ``fit``, unless ``set_fit_request(groups=False)`` says otherwise.

    Parameters
    ----------
    C : float, default=3.0
        Inverse regularization strength.
    kernel : {"rbf", "linear"}, default="rbf"
        ``exp(-gamma |x - x'|^2)`` or ``x . x'``.
    gamma : "scale" or float, default="scale"
        Coefficient of the RBF kernel; "scale" is ``1 / (d * variance of all scaled values)``, as in
        scikit-learn, which is 1 unless ``scale`` is None.
    scale : {"root", "l2", "standard"} or None, default="root"
        As in ``LinearHead``.

    Attributes
    ----------
    classes_ : ndarray of shape (k,)
        Sorted training labels; the columns of the scores.
    support_vectors_ : ndarray of shape (s, d)
        Scaled support vectors, class by class; the landmarks of an approximate machine.
    n_support_ : ndarray of shape (k,)
        Number of support vectors of each class.
    dual_coef_, intercept_ : ndarray of shape (k - 1, s), (k * (k - 1) / 2,)
        Coefficients and intercepts of the pairwise machines, in the order of libsvm.
    coef_, intercept_ : ndarray of shape (k, s), (k,)
        In the place of ``n_support_``, ``dual_coef_`` and ``intercept_``, those of an approximate
        machine: of the kernel values of the landmarks.
    gamma_ : float
        Coefficient of the RBF kernel.
    calibration_ : ndarray of shape (1,)
        Slope of the logits.
    centre_, spread_ : ndarray of shape (d,)
        Parameters of the scaling.
    warnings_ : tuple of str
        Whether there were too few images for the cross-validation, and a default slope is used;
        whether the machine is approximate.

    References
    ----------
    Williams and Seeger, "Using the Nystroem method to speed up kernel machines", NIPS 2000.
    Platt, "Probabilistic outputs for support vector machines and comparisons to regularized
    likelihood methods", Advances in Large Margin Classifiers 1999.
    Chang and Lin, "LIBSVM: a library for support vector machines", ACM TIST 2011.
    """

    SCORES_OF_TRIALS_DIFFER: ClassVar[bool] = True
    """``trials`` gives other scores than a fitted head, but predicts the same classes."""

    # Read by scikit-learn's metadata routing: groups are passed on to ``fit`` unless refused.
    __metadata_request__fit: ClassVar[dict[str, bool]] = {"groups": True}

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "C": [Interval(Real, 0, None, closed="neither")],
        "kernel": [StrOptions({"rbf", "linear"})],
        "gamma": [StrOptions({"scale"}), Interval(Real, 0, None, closed="neither")],
        "scale": [StrOptions({each for each in SCALES if each}), None],
    }

    def __init__(
        self,
        *,
        C: float = 3.0,
        kernel: str = "rbf",
        gamma: str | float = "scale",
        scale: str | None = "root",
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.scale = scale

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> SVMHead:
        """Fit on features ``(n, d)`` with labels ``(n,)`` and sample weights ``(n,)``.

        Args:
            X: features.
            y: labels.
            sample_weight: weight of each sample; None for equal weights.
            groups: ``(n,)`` group of each sample, such as its patient; None for independent
                samples. The calibration leaves out samples whose group is an empty text.

        Raises:
            UnfitDataError: if all samples of a class have weight zero, or a group is missing.
        """
        samples = self._check_samples(X, y, sample_weight, groups)
        for name in ("coef_", "dual_coef_", "n_support_"):  # of an earlier fit
            if hasattr(self, name):
                delattr(self, name)
        if len(samples.x) > MAX_KERNEL_ROWS:
            self._fit_weights(self._approximate(samples))
        else:
            self._calibrate(self._fit_machines(samples))
        return self

    def _check_samples(
        self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None
    ) -> _Samples:
        """Return all samples that have any weight."""
        x, codes = self._check_training_data(X, y)
        group_of = None if groups is None else checked_groups(groups, len(x))
        weights = checked_weights(sample_weight, x)
        # libsvm ignores samples of weight zero too, but then renumbers the remaining ones, which
        # would make its indices of support vectors wrong here.
        positive = weights > 0
        if not positive.all():
            x, codes, weights = x[positive], codes[positive], weights[positive]
            group_of = None if group_of is None else group_of[positive]
        if missing := set(range(len(self.classes_))) - set(codes.tolist()):
            label = self.classes_[min(missing)]
            raise UnfitDataError(f"all images of class {label} have sample weight zero")
        return _Samples(x, codes, weights, group_of)

    def _fit_machines(self, samples: _Samples) -> _TrainingData:
        """Fit the scaling and the pairwise machines; return what the calibration needs."""
        x, codes, weights, groups = samples
        scaled = self._fit_scale(x, weights)
        kernel = self._kernel(scaled, scaled)
        support = self._fit_machine(SVC(kernel="precomputed"), kernel, codes, weights)
        self.support_vectors_ = scaled[support]
        folds = _folds(x, codes) if groups is None else _group_folds(groups, codes)
        return _TrainingData(kernel, codes, weights, folds)

    def _approximate(self, samples: _Samples) -> _ApproximateData:
        """Fit the scaling and choose the landmarks; return features in which the kernel is linear.

        The features of the kernel matrix ``K`` of the landmarks and the kernel values ``k`` of a
        row are ``K^(-1/2) k``.
        """
        x, codes, weights, groups = samples
        rng = np.random.default_rng(0)
        rows = np.arange(len(x))
        if len(x) > MAX_APPROXIMATE_ROWS:
            rows = _draw(rng, codes, MAX_APPROXIMATE_ROWS)
        self._fit_scale_parameters(x, weights)
        scaled = self._scaled(x[rows])
        release_pages(x)
        own_groups = None if groups is None else groups[rows]
        drawn = _Samples(scaled, codes[rows], weights[rows], own_groups)
        if self.kernel == "linear":
            landmarks = np.eye(x.shape[1], dtype=x.dtype)
            return _ApproximateData(scaled, landmarks, landmarks, drawn, len(x))
        landmarks = scaled[np.sort(rng.choice(len(rows), min(LANDMARKS, len(rows)), replace=False))]
        with blas_threads(None):
            values, vectors = np.linalg.eigh(self._kernel(landmarks, landmarks))
            kept = values > SMALLEST_EIGENVALUE * values[-1]
            whitening = (vectors[:, kept] / np.sqrt(values[kept])).astype(scaled.dtype)
            features = np.empty((len(scaled), whitening.shape[1]), scaled.dtype)
            for block in gen_batches(len(scaled), max(1, BLOCK_VALUES // len(landmarks))):
                kernel = self._kernel(scaled[block], landmarks).astype(scaled.dtype)
                features[block] = kernel @ whitening
        return _ApproximateData(features, landmarks, whitening, drawn, len(x))

    def _fit_weights(self, data: _ApproximateData) -> None:
        """Fit the linear machines and the slope of an approximate machine."""
        features, (x, codes, weights, groups) = data.features, data.samples
        held = _held_out(x, codes) if groups is None else _held_out_groups(groups, codes)
        fit = self._fit_linear(data, ~held)
        slope = DEFAULT_SLOPE
        if held.any():
            values = features[held] @ fit.coef.T + fit.intercept
            slope = _fit_slope(values, codes[held], weights[held])
        if held.mean() > MAX_HELD_OUT:  # large groups
            fit = self._fit_linear(data, np.ones(len(codes), bool))
        self.support_vectors_ = data.landmarks
        self.coef_, self.intercept_ = fit.coef @ data.whitening.T.astype(np.float64), fit.intercept
        self.calibration_ = np.array([slope])
        method = "a linear kernel"
        if self.kernel != "linear":
            method = f"the Nystroem approximation with {len(data.landmarks)} landmarks"
        part = "" if len(codes) == data.total else f", on {len(codes)} of them"
        self.warnings_ = (
            f"svm is approximate: {data.total} training images are more than the "
            f"{MAX_KERNEL_ROWS} of an exact fit, so that one machine per class was fitted with "
            f"{method}{part}",
        )
        if not fit.converged:
            self.warnings_ += (f"svm did not converge in {fit.n_iter} iterations",)
        if not held.any():
            self.warnings_ += (UNCALIBRATED,)

    def _fit_linear(self, data: _ApproximateData, fitted: NDArray[np.bool_]) -> StreamedFit:
        """Fit the linear machines of an approximate machine on the rows ``fitted (n,)``."""
        features, weights = data.features, data.samples.weights
        # A view that is not an array: the solver would copy one.
        source = ScaledRows(features, None, features[0], features[0])
        with blas_threads(None):
            return fit_streamed(
                source,
                data.samples.codes,
                squared_hinge,
                n_classes=len(self.classes_),
                penalty=1 / (self.C * float(weights[fitted].sum())),
                weights=weights * fitted,
                tol=1e-5,
            )

    @classmethod
    def trials(
        cls, x: Floats, y: NDArray[Any], x_val: Floats, seed: int = 0, groups: Any = None
    ) -> Iterator[Trial]:
        """Yield the scores on ``x_val (m, d)`` of all candidates fitted on ``x (n, d)``, ``y``.

        Distances are computed once for each scaling, and the kernel once for all C. The scores have
        the default slope (``SCORES_OF_TRIALS_DIFFER``). ``seed`` is unused; ``groups`` are kept
        together where rows are held out, which only many rows need.
        """
        if len(x) > MAX_KERNEL_ROWS:
            yield from cls._approximate_trials(x, y, x_val, groups)
            return
        for scale, group in groupby(SEARCH_KERNELS, key=itemgetter(0)):
            shared = cls(scale=scale)
            checked, codes = shared._check_training_data(x, y)
            train = shared._fit_scale(checked)
            val = shared._scaled(shared._check_features(x_val))
            train_distances = _squared_distances(train, train)
            val_distances = _squared_distances(val, train)
            for _, gamma in group:
                number = shared.gamma_ if gamma == "scale" else float(gamma)
                train_kernel = _rbf(train_distances, number)
                val_kernel = _rbf(val_distances, number)
                score = partial(_fit_and_score, codes, train_kernel, val_kernel)
                heads = [cls(C=C, gamma=gamma, scale=scale) for C in SEARCH_CS]
                for C, scores in zip(SEARCH_CS, fit_in_threads(score, heads), strict=True):
                    yield Trial({"scale": scale, "gamma": gamma, "C": C}, scores)

    @classmethod
    def _approximate_trials(
        cls, x: Floats, y: NDArray[Any], x_val: Floats, groups: Any
    ) -> Iterator[Trial]:
        """Do what ``trials`` does on more rows than a kernel matrix holds."""
        for scale, gamma in SEARCH_KERNELS:
            head = cls(gamma=gamma, scale=scale)
            data = head._approximate(head._check_samples(x, y, groups=groups))
            for C in SEARCH_CS:
                head.C = C
                head._fit_weights(data)
                options = {"scale": scale, "gamma": gamma, "C": C}
                yield Trial(options, head.predict_proba(x_val))

    def _fit_scale(self, x: Floats, weights: NDArray[np.float64] | None = None) -> Floats:
        """Fit the scaling and set ``gamma_``; return the scaled features ``(n, d)``."""
        self._fit_scale_parameters(x, weights)
        return self._scaled(x)

    def _fit_scale_parameters(self, x: Floats, weights: NDArray[np.float64] | None = None) -> None:
        self.centre_, self.spread_ = fit_scale(x, self.scale, weights)
        if self.gamma != "scale":
            self.gamma_ = float(self.gamma)
        elif self.scale is not None:
            self.gamma_ = 1.0  # the scaling made the mean 0 and the total variance 1
        else:
            # As in scikit-learn, of all values: it includes the differences between column means.
            blocks = row_blocks(x) if is_large(x) else [(slice(None), x)]
            means, squares = np.empty(len(x), x.dtype), np.empty(len(x), x.dtype)
            for part, block in blocks:
                means[part] = block.mean(axis=1)
            mean = np.average(means, weights=weights)
            blocks = row_blocks(x) if is_large(x) else [(slice(None), x)]
            for part, block in blocks:
                squares[part] = ((block - mean) ** 2).sum(axis=1)
            total = float(np.average(squares, weights=weights))
            self.gamma_ = 1 / total if total > 0 else 1.0

    def _scaled(self, x: Floats) -> Floats:
        return apply_scale(x, self.scale, self.centre_, self.spread_)

    def _kernel(self, a: Floats, b: Floats) -> NDArray[np.float64]:
        """Return the kernel values ``(n, m)`` of scaled features ``(n, d)`` and ``(m, d)``."""
        if self.kernel == "linear":
            return np.asarray(a, np.float64) @ np.asarray(b, np.float64).T
        distances = _squared_distances(a, b)
        return _rbf(distances, self.gamma_, out=distances)

    def _fit_machine(
        self,
        machine: Any,
        x: Floats,
        codes: NDArray[np.intp],
        weights: Any = None,
    ) -> NDArray[np.intp]:
        """Fit a ``SVC`` on features or kernel values; return its support indices ``(s,)``."""
        # With the usual tolerance of 1e-3, the scores would depend on the order of the samples.
        machine.set_params(C=self.C, tol=1e-8, cache_size=1000).fit(x, codes, weights)
        self.n_support_, self.dual_coef_ = machine.n_support_, machine.dual_coef_
        self.intercept_ = machine.intercept_
        support: NDArray[np.intp] = machine.support_
        return support

    def _calibrate(self, data: _TrainingData) -> None:
        """Fit the slope of the scores by cross-validation."""
        kernel = data.kernel
        kept = np.flatnonzero(data.folds >= 0)
        codes, weights, folds = data.codes[kept], data.weights[kept], data.folds[kept]
        if len(kept) < len(data.folds):
            kernel = kernel[np.ix_(kept, kept)]
        logits = np.full((len(codes), len(self.classes_)), -np.inf)
        n_held = 0
        for fold in range(FOLDS):
            if n_held >= ENOUGH_IMAGES:
                break
            train, held = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            n_held += len(held)
            present, train_codes = np.unique(codes[train], return_inverse=True)
            if len(present) < 2 or not len(held):
                continue
            machine = SVMHead(C=self.C)
            support = machine._fit_machine(
                SVC(kernel="precomputed"),
                kernel[np.ix_(train, train)],
                train_codes,
                weights[train],
            )
            for block in gen_batches(len(held), machine._block_rows(len(support))):
                rows = held[block]
                pairs = machine._pair_values(kernel[np.ix_(rows, train[support])])
                logits[np.ix_(rows, present)] = _smallest_margins(pairs, len(present))
        known = np.isfinite(logits[np.arange(len(codes)), codes])
        if known.any():
            slope = _fit_slope(logits[known], codes[known], weights[known])
        else:
            slope = DEFAULT_SLOPE
            self.warnings_ = (UNCALIBRATED,)
        self.calibration_ = np.array([slope])

    def _logits(self, x: Floats) -> Floats:
        if hasattr(self, "coef_"):
            return np.concatenate(list(self._value_blocks(x)))
        k = len(self.n_support_)
        return np.concatenate([_one_vs_rest(pairs, k) for pairs in self._pair_blocks(x)])

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return class scores ``(n, k)``, columns as in ``classes_``; each row sums to 1."""
        x = self._check_features(X)
        calibration = getattr(self, "calibration_", None)
        if calibration is None:  # a file of version 0.1.0
            return logits_to_scores(self._logits(x))
        slope = float(calibration[0])
        if hasattr(self, "coef_"):
            return logits_to_scores(slope * self._logits(x))
        return np.concatenate([_scores(pairs, slope) for pairs in self._pair_blocks(x)])

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the labels ``(n,)`` with the highest one-vs-rest decision values."""
        # The logits come first: they raise NotFittedError if there are no classes_ yet.
        best = self._logits(self._check_features(X)).argmax(axis=1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def _pair_blocks(self, x: Floats) -> Iterator[NDArray[np.float64]]:
        """Yield the pairwise decision values ``(b, p)`` of blocks of features ``(n, d)``."""
        scaled, vectors = self._scaled(x), self.support_vectors_.astype(np.float64)
        for block in gen_batches(len(scaled), self._block_rows(len(vectors))):
            yield self._pair_values(self._kernel(scaled[block], vectors))

    def _value_blocks(self, x: Floats) -> Iterator[NDArray[np.float64]]:
        """Yield the decision values ``(b, k)`` of an approximate machine."""
        for block in gen_batches(len(x), max(1, BLOCK_VALUES // len(self.support_vectors_))):
            kernel = self._kernel(self._scaled(x[block]), self.support_vectors_)
            yield kernel @ self.coef_.T + self.intercept_

    def _block_rows(self, n_vectors: int) -> int:
        """Return the number of rows whose kernel and pairwise values fit into a block."""
        return max(1, BLOCK_VALUES // max(n_vectors, 2 * len(self.intercept_)))

    def _pair_values(self, kernel: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the pairwise decision values ``(n, p)`` for kernel values ``(n, s)``.

        At zero and above, the first class of the pair wins; for two classes, the second.
        """
        first, second = np.triu_indices(len(self.n_support_), 1)
        stops = np.cumsum(self.n_support_)
        with single_threaded_blas():
            parts = []
            for size, stop in zip(self.n_support_, stops, strict=True):
                members = slice(stop - size, stop)
                parts.append(self.dual_coef_[:, members] @ kernel[:, members].T)
            by_class = np.stack(parts)  # (k, k - 1, n)
        # Of class i, row j - 1 of the coefficients belongs to the pair (i, j) if i < j, and row
        # j to the pair (j, i) otherwise.
        pairs = (by_class[first, second - 1] + by_class[second, first]).T + self.intercept_
        return np.asarray(pairs, np.float64)


def _fit_and_score(
    codes: NDArray[np.intp],
    train_kernel: NDArray[np.float64],
    val_kernel: NDArray[np.float64],
    head: SVMHead,
) -> NDArray[np.float64]:
    """Fit a head on kernel values ``(n, n)``; return scores for those of other rows ``(m, n)``."""
    support = head._fit_machine(SVC(kernel="precomputed"), train_kernel, codes)
    return _scores(head._pair_values(val_kernel[:, support]), DEFAULT_SLOPE)


def _folds(x: Floats, codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the fold of each row of features ``(n, d)``, stratified, ``(n,)``.

    The folds depend on the content of the rows only, and equal rows are in the same fold: a sample
    must not be in two of them, and neither the order of the samples nor the unit of the features
    may matter.
    """
    digests = _digests(unit_norm(x) + 0.0)  # no negative zeros
    folds = np.empty(len(codes), np.intp)
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        distinct, ranks = np.unique(digests[members], return_inverse=True)
        folds[members] = (ranks + int(distinct[0], 16) % FOLDS) % FOLDS
    return folds


def _digests(rows: Floats) -> NDArray[np.str_]:
    """Return 16 hex digits over the content of each row, ``(n,)``."""
    return np.array([hashlib.sha256(row.tobytes()).hexdigest()[:16] for row in rows])


def _group_folds(groups: NDArray[Any], codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the fold of each row ``(n,)``, stratified, in whole groups; -1 for an empty group.

    The folds do not depend on the order of the rows. With fewer groups than ``FOLDS`` there are as
    many folds as groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold  # imports half of scikit-learn

    folds = np.full(len(codes), -1, np.intp)
    rows = np.flatnonzero(groups != "") if groups.dtype.kind in "UO" else np.arange(len(codes))
    if not len(rows):
        return folds
    labels, own = codes[rows], groups[rows]
    count = min(FOLDS, len(np.unique(own)), int(np.bincount(labels).max()))
    folds[rows] = 0
    if count < 2:
        return folds
    splitter = StratifiedGroupKFold(count)
    with warnings.catch_warnings():
        # A class with fewer images than folds is missing in some of them, which is no problem.
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)
        for fold, (_, held) in enumerate(splitter.split(np.zeros((len(rows), 1)), labels, own)):
            folds[rows[held]] = fold
    return folds


def _ranks(codes: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the number of earlier rows of the same class, ``(n,)``."""
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    ranks = np.empty(len(codes), np.intp)
    ranks[order] = np.arange(len(codes)) - np.repeat(np.cumsum(counts) - counts, counts)
    return ranks


def _draw(rng: np.random.Generator, codes: NDArray[np.intp], size: int) -> NDArray[np.intp]:
    """Return ``size`` row numbers drawn with equal chance, and the first ones of each class."""
    drawn = rng.choice(len(codes), size, replace=False)
    return np.union1d(drawn, np.flatnonzero(_ranks(codes) < FOLDS))


def _held_out(x: Floats, codes: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which rows ``(n,)`` the slope is fitted on: about 1,000, the same share of classes.

    Of equal rows, such as those that a correction repeats, all are held out or none.
    """
    step = max(2, len(codes) // ENOUGH_IMAGES)
    digests = _digests(x)
    held = np.zeros(len(codes), bool)
    for code in np.unique(codes):
        members = np.flatnonzero(codes == code)
        ranks = np.unique(digests[members], return_inverse=True)[1]
        held[members] = ranks % step == step - 1
    return held


def _held_out_groups(groups: NDArray[Any], codes: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Return which rows ``(n,)`` the slope is fitted on: whole groups, up to 1,000 rows or half.

    If every group is larger, it is the smallest one. Rows of an empty group are not among them, nor
    groups without which a class has no rows.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    counts = np.bincount(group_of)
    candidates = np.random.default_rng(0).permutation(len(names))
    if names.dtype.kind in "UO":
        candidates = candidates[names[candidates] != ""]
    is_chosen = np.zeros(len(names), bool)
    left = min(ENOUGH_IMAGES, len(codes) // 2)
    for group in candidates.tolist():
        if counts[group] <= left:
            is_chosen[group] = True
            left -= counts[group]
    if len(candidates) and not is_chosen.any():
        is_chosen[candidates[counts[candidates].argmin()]] = True
    held: NDArray[np.bool_] = is_chosen[group_of]
    lost = np.setdiff1d(codes, codes[~held])
    is_chosen[group_of[np.isin(codes, lost)]] = False
    held = is_chosen[group_of]
    return held


def _smallest_margins(pairs: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return the smallest margin of each class over its pairs, ``(n, k)``.

    Args:
        pairs: pairwise decision values ``(n, p)``.
        k: number of classes.
    """
    if k == 2:
        return np.column_stack([-pairs, pairs])
    first, second = np.triu_indices(k, 1)
    order = np.argsort(np.concatenate([first, second]), kind="stable")
    # One row for each class and rival: whole rows are copied faster than columns.
    by_rival = np.concatenate([pairs.T, -pairs.T])[order]
    margins: NDArray[np.float64] = by_rival.reshape(k, k - 1, len(pairs)).min(axis=1).T
    return margins


def _fit_slope(
    margins: NDArray[np.float64], codes: NDArray[np.intp], weights: NDArray[np.float64]
) -> float:
    """Return the slope with the highest likelihood of the classes ``(n,)``.

    One pseudo-image is added, an average image whose class is the one with the second-largest
    margin: without it, the slope is infinite if all images are predicted correctly. Its weight is
    1.

    Args:
        margins: of held-out images ``(n, k)``; minus infinity for a class without training images.
        codes: their classes ``(n,)``.
        weights: their weights ``(n,)``.
    """
    relative = margins - margins.max(axis=1, keepdims=True)
    total = weights.sum()
    own = weights @ relative[np.arange(len(codes)), codes]
    runner_up = weights @ np.partition(relative, -2, axis=1)[:, -2] / total

    def derivative(slope: float) -> float:
        """Return that of the negative log-likelihood, which is convex."""
        shares = softmax(slope * relative, axis=1)
        # A class without training images has the margin minus infinity and the share 0.
        mean = (shares * np.where(shares > 0, relative, 0)).sum(axis=1)
        return float((1 + 1 / total) * (weights @ mean) - (own + runner_up))

    low, high = SLOPES
    if derivative(low) >= 0:
        return low
    if derivative(high) <= 0:
        return high
    return float(brentq(derivative, low, high, xtol=1e-12, rtol=1e-12))


def _scores(pairs: NDArray[np.float64], slope: float) -> NDArray[np.float64]:
    """Return the scores ``(n, k)`` of pairwise decision values ``(n, p)``."""
    k = round((1 + np.sqrt(1 + 8 * pairs.shape[1])) / 2)
    scores = logits_to_scores(slope * _smallest_margins(pairs, k))
    rows = np.arange(len(scores))
    predicted, highest = _one_vs_rest(pairs, k).argmax(axis=1), scores.argmax(axis=1)
    exchanged = scores.copy()
    exchanged[rows, predicted] = scores[rows, highest]
    exchanged[rows, highest] = scores[rows, predicted]
    # Of equal scores, the first is the highest.
    ties = np.flatnonzero(exchanged.argmax(axis=1) != predicted)
    exchanged[ties, predicted[ties]] = np.nextafter(exchanged[ties].max(axis=1), np.inf)
    return exchanged


def _squared_distances(a: Floats, b: Floats) -> NDArray[np.float64]:
    """Return ``|a - b|^2`` ``(n, m)`` for rows ``(n, d)`` and ``(m, d)``."""
    same = b is a
    a = np.asarray(a, np.float64)
    # With a single array NumPy computes one half of the symmetric product only.
    b = a if same else np.asarray(b, np.float64)
    # In place, as the matrix may take gigabytes.
    distances: NDArray[np.float64] = a @ b.T
    distances *= -2
    distances += np.einsum("nd,nd->n", a, a)[:, None]
    distances += np.einsum("md,md->m", b, b)
    return np.maximum(distances, 0, out=distances)


def _rbf(
    distances: NDArray[np.float64], gamma: float, out: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return ``exp(-gamma distances)`` in ``out``, or in a single new array."""
    kernel: NDArray[np.float64] = np.multiply(distances, -gamma, out=out)
    return np.exp(kernel, out=kernel)


def _one_vs_rest(pairs: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """Return one-vs-rest values ``(n, k)`` from pairwise ones.

    The value of a class is the number of pairs won plus its summed margins scaled to -1/3 .. 1/3,
    equal to scikit-learn's ``SVC(decision_function_shape="ovr")``; for two classes, 0 and the
    decision value.

    Args:
        pairs: pairwise decision values ``(n, p)``; see ``SVMHead._pair_values``.
        k: number of classes.
    """
    if k == 2:
        return np.asarray(binary_to_two_columns(pairs), np.float64)
    first, second = np.triu_indices(k, 1)
    signs = np.eye(k)[first] - np.eye(k)[second]
    won = (np.where(pairs < 0, -1.0, 1.0) @ signs + k - 1) / 2
    margins = pairs @ signs
    values: NDArray[np.float64] = won + margins / (3 * (np.abs(margins) + 1))
    return values
