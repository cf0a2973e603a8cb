"""Cleaning and resampling: against nilearn, numpy.polyfit, scikit-learn and planted signals."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.signal import clean as nilearn_clean
from scipy.interpolate import CubicSpline
from semantoks import signals
from sklearn.linear_model import LinearRegression

TR = 2.0
PASS_BAND = (0.01, 0.1)


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(7)


def walks(random: np.random.Generator, rows: int, frames: int) -> np.ndarray:
    """Signals with drift and mean, as raw BOLD has them."""
    return np.cumsum(random.normal(size=(rows, frames)), axis=1) + 500


def sine(frequency: float, frames: int, tr: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * np.arange(frames) * tr + 0.3)[None]


def test_rows_with_data_are_finite_and_vary(random: np.random.Generator) -> None:
    series = random.normal(size=(5, 20))
    series[1] = np.nan
    series[2, 3] = np.inf
    series[3] = 1234.5
    assert signals.rows_with_data(series).tolist() == [True, False, False, False, True]


def test_detrend_leaves_what_a_fitted_line_leaves(random: np.random.Generator) -> None:
    series = walks(random, 4, 90)
    time = np.arange(90)
    expected = [row - np.polyval(np.polyfit(time, row, 1), time) for row in series]
    np.testing.assert_allclose(signals.detrend(series), expected, atol=1e-9)


@pytest.mark.parametrize("pass_band", [PASS_BAND, (None, 0.1), (0.008, None), (None, None)])
@pytest.mark.parametrize("with_confounds", [True, False])
def test_clean_equals_nilearn(
    random: np.random.Generator, pass_band: tuple[float | None, float | None], with_confounds: bool
) -> None:
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    ours = signals.clean(series, TR, confounds if with_confounds else None, pass_band=pass_band)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = nilearn_clean(
            series.T.copy(),
            confounds=confounds.T.copy() if with_confounds else None,
            t_r=TR,
            high_pass=pass_band[0],
            low_pass=pass_band[1],
            filter="butterworth" if any(pass_band) else False,
            standardize=None,
        ).T
    np.testing.assert_allclose(ours, theirs, atol=1e-10 * np.abs(theirs).max())


def nilearn_on_kept(
    series: np.ndarray,
    confounds: np.ndarray,
    kept: np.ndarray,
    pass_band: tuple[float | None, float | None],
    **more: Any,
) -> np.ndarray:
    """nilearn's result [ROI, kept volume] with the settings of :func:`signals.clean`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cleaned: np.ndarray = nilearn_clean(
            series.T.copy(),
            confounds=confounds.T.copy(),
            sample_mask=np.flatnonzero(kept),
            t_r=TR,
            high_pass=pass_band[0],
            low_pass=pass_band[1],
            filter="butterworth" if any(pass_band) else False,
            standardize=None,
            extrapolate=False,
            **more,
        ).T
    return cleaned


@st.composite
def censoring(draw: st.DrawFn, frames: int = 180) -> np.ndarray:
    """Kept volumes, bool [time]: gaps drawn anywhere, the ends among them."""
    kept = np.ones(frames, dtype=bool)
    for start, length in draw(st.lists(st.tuples(st.integers(0, frames - 1), st.integers(1, 12)), max_size=8)):
        kept[start : start + length] = False
    kept[: draw(st.integers(0, 20))] = False
    kept[frames - draw(st.integers(0, 20)) :] = False
    return kept


@settings(max_examples=60, deadline=None)
@given(kept=censoring(), seed=st.integers(0, 99), pass_band=st.sampled_from([PASS_BAND, (None, 0.1), (0.008, None)]))
def test_clean_with_censoring_and_filter_equals_nilearn_on_kept_volumes(
    kept: np.ndarray, seed: int, pass_band: tuple[float | None, float | None]
) -> None:
    random = np.random.default_rng(seed)
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    ours = signals.clean(series, TR, confounds, kept, pass_band)
    # nilearn 0.13 misses a censored volume whose mirror image in time is censored too (it inverts indices as if they
    # were a mask), so it gets the part from the first to the last kept volume, interpolated
    times = np.flatnonzero(kept)
    span = np.arange(times[0], times[-1] + 1)
    filled = [CubicSpline(times, part[:, times], axis=1)(span) for part in (series, confounds)]
    theirs = nilearn_on_kept(*filled, kept[span], pass_band)
    assert ours.shape == series.shape
    np.testing.assert_allclose(ours[:, kept], theirs, atol=1e-8 * np.abs(theirs).max())


@settings(max_examples=60, deadline=None)
@given(kept=censoring(), seed=st.integers(0, 99), trend=st.booleans())
def test_clean_with_censoring_and_without_filter_equals_nilearn_on_kept_volumes(
    kept: np.ndarray, seed: int, trend: bool
) -> None:
    random = np.random.default_rng(seed)
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    ours = signals.clean(series, TR, confounds, kept, remove_trend=trend)
    theirs = nilearn_on_kept(series, confounds, kept, (None, None), detrend=trend)
    assert ours.shape == series.shape
    np.testing.assert_allclose(ours[:, kept], theirs, atol=1e-8 * np.abs(theirs).max())


@pytest.mark.parametrize("ends", [(4, 0), (0, 6), (4, 6)])
def test_censored_ends_take_no_part_in_the_filter_as_in_nilearn(
    random: np.random.Generator, ends: tuple[int, int]
) -> None:
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    before, after = ends
    kept = np.ones(180, dtype=bool)
    kept[:before] = kept[180 - after :] = False
    ours = signals.clean(series, TR, confounds, kept, PASS_BAND)
    np.testing.assert_allclose(
        ours[:, kept], signals.clean(series[:, kept], TR, confounds[:, kept], pass_band=PASS_BAND), atol=1e-9
    )
    np.testing.assert_array_equal(ours[:, :before], ours[:, [before] * before], "the first kept value is held")
    np.testing.assert_array_equal(ours[:, 180 - after :], ours[:, [179 - after] * after], "the last is held")
    if min(ends) == 0:  # with both, nilearn 0.13 does not find the ends (see above)
        theirs = nilearn_on_kept(series, confounds, kept, PASS_BAND)
        np.testing.assert_allclose(ours[:, kept], theirs, atol=1e-8 * np.abs(theirs).max())


@pytest.mark.parametrize("pass_band", [PASS_BAND, (None, None)])
@pytest.mark.parametrize("trend", [True, False])
@pytest.mark.parametrize("level", [5.3, 0.1, 0.001, 7e5, 0.0])
def test_a_constant_confound_changes_nothing(
    random: np.random.Generator, pass_band: tuple[float | None, float | None], trend: bool, level: float
) -> None:
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    kept = random.random(180) > 0.1
    more = np.vstack([confounds, np.where(kept, level, 99.0)])
    expected = signals.clean(series, TR, confounds, kept, pass_band, trend)
    np.testing.assert_allclose(signals.clean(series, TR, more, kept, pass_band, trend), expected, atol=1e-9)
    np.testing.assert_allclose(signals.regress(series, more, kept), signals.regress(series, confounds, kept), atol=1e-9)


@pytest.mark.parametrize("pass_band", [PASS_BAND, (None, None)])
def test_a_linear_confound_changes_nothing_where_trends_are_removed(
    random: np.random.Generator, pass_band: tuple[float | None, float | None]
) -> None:
    series, confounds = walks(random, 8, 180), walks(random, 5, 180)
    more = np.vstack([confounds, 5.3 + 0.1 * np.arange(180)])
    expected = signals.clean(series, TR, confounds, pass_band=pass_band)
    np.testing.assert_allclose(signals.clean(series, TR, more, pass_band=pass_band), expected, atol=1e-9)


def test_a_spike_in_a_censored_volume_leaves_no_trace(random: np.random.Generator) -> None:
    series = walks(random, 3, 150)
    kept = np.ones(150, dtype=bool)
    kept[[0, 40, 41, 109, 149]] = False
    spiked = series + np.where(kept, 0, 1e4)
    cleaned = signals.clean(series, TR, kept=kept, pass_band=PASS_BAND)
    np.testing.assert_allclose(signals.clean(spiked, TR, kept=kept, pass_band=PASS_BAND), cleaned, atol=1e-9)


def test_interpolation_follows_a_cubic_and_holds_the_ends() -> None:
    time = np.linspace(-1, 1, 40)
    cubic = (time**3 - time)[None]
    kept = np.ones(40, dtype=bool)
    kept[[0, 1, 10, 11, 25, 39]] = False
    filled = signals.interpolate_censored(np.where(kept, cubic, 99.0), kept)
    np.testing.assert_allclose(filled[0, [10, 11, 25]], cubic[0, [10, 11, 25]], atol=1e-12)
    np.testing.assert_array_equal(filled[0, [0, 1, 39]], cubic[0, [2, 2, 38]])


def test_interpolation_of_three_kept_volumes_is_linear_and_of_none_is_refused() -> None:
    kept = np.array([True, False, True, False, True])
    filled = signals.interpolate_censored(np.array([[0.0, 9, 2, 9, 6]]), kept)
    np.testing.assert_allclose(filled, [[0, 1, 2, 4, 6]])
    with pytest.raises(ValueError, match="every volume is censored"):
        signals.interpolate_censored(np.zeros((1, 5)), np.zeros(5, dtype=bool))


@pytest.mark.parametrize(("frequency", "gain"), [(0.03, 1.0), (0.05, 1.0), (0.1, 0.5), (0.16, 0.0), (0.004, 0.0)])
def test_band_pass_has_the_gain_of_a_squared_butterworth_filter_and_no_phase(frequency: float, gain: float) -> None:
    series = sine(frequency, 2000, 0.8)
    middle = slice(800, 1200)
    filtered = signals.band_pass(series, 0.8, *PASS_BAND)
    np.testing.assert_allclose(filtered[:, middle], gain * series[:, middle], atol=0.01)


@pytest.mark.parametrize(
    ("tr", "low", "high", "message"),
    [(6.0, 0.01, 0.1, "Nyquist"), (2.0, 0.1, 0.05, "empty"), (2.0, 0.3, None, "empty"), (2.0, 0.0, 0.1, "empty")],
)
def test_impossible_pass_bands_are_refused(tr: float, low: float, high: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        signals.band_pass(np.zeros((1, 100)), tr, low, high)


def test_band_pass_works_on_recordings_shorter_than_its_padding() -> None:
    assert np.isfinite(signals.band_pass(sine(0.05, 12, 2.0), 2.0, *PASS_BAND)).all()


def test_regression_equals_least_squares_fitted_on_kept_volumes(random: np.random.Generator) -> None:
    series, confounds = walks(random, 6, 120), walks(random, 4, 120)
    kept = random.random(120) > 0.3
    model = LinearRegression().fit(confounds[:, kept].T, series[:, kept].T)
    centred = confounds - confounds[:, kept].mean(axis=1, keepdims=True)
    expected = series - model.coef_ @ centred
    np.testing.assert_allclose(signals.regress(series, confounds, kept), expected, atol=1e-8)


def test_dependent_and_constant_confounds_change_nothing(random: np.random.Generator) -> None:
    series, confounds = walks(random, 6, 120), walks(random, 3, 120)
    redundant = np.vstack([confounds, confounds[0] - 2 * confounds[1], np.full(120, 3.0)])
    np.testing.assert_allclose(
        signals.regress(series, redundant), signals.regress(series, confounds), rtol=0, atol=1e-7
    )
    np.testing.assert_array_equal(signals.regress(series, np.ones((2, 120))), series)


def test_a_row_without_data_stays_nan_and_leaves_the_others_alone(random: np.random.Generator) -> None:
    series, confounds = walks(random, 3, 160), walks(random, 2, 160)
    kept = random.random(160) > 0.1
    holed = series.copy()
    holed[1] = np.nan
    whole = signals.resample(signals.clean(series, 0.8, confounds, kept, PASS_BAND), 0.8, 2.0)
    result = signals.resample(signals.clean(holed, 0.8, confounds, kept, PASS_BAND), 0.8, 2.0)
    assert np.isnan(result[1]).all()
    np.testing.assert_allclose(result[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("frequency", [0.02, 0.05, 0.1, 0.18])
def test_resampling_from_735_ms_keeps_what_the_new_rate_can_hold(frequency: float) -> None:
    resampled = signals.resample(sine(frequency, 490, 0.735), 0.735, 2.0)
    assert resampled.shape == (1, 180)
    np.testing.assert_allclose(resampled[0, 25:-25], sine(frequency, 180, 2.0)[0, 25:-25], atol=1e-3)


@pytest.mark.parametrize("frequency", [0.26, 0.3, 0.4, 0.45, 0.5, 0.6, 0.67])
def test_resampling_from_735_ms_is_free_of_aliases(frequency: float) -> None:
    resampled = signals.resample(sine(frequency, 980, 0.735), 0.735, 2.0)[0, 25:-25]
    spectrum = np.abs(np.fft.rfft(resampled * np.hanning(len(resampled)))) / (np.hanning(len(resampled)).sum() / 2)
    assert spectrum.max() < 1e-3


@pytest.mark.parametrize("tr", [1.5, 2.5, 3.0])
def test_resampling_up_and_down_follows_band_passed_signals(tr: float) -> None:
    frames = round(600 / tr)
    resampled = signals.resample(sine(0.09, frames, tr), tr, 2.0)
    expected = sine(0.09, resampled.shape[1], 2.0)
    np.testing.assert_allclose(resampled[0, 20:-20], expected[0, 20:-20], atol=2e-3)
    assert (resampled.shape[1] - 1) * 2.0 <= (frames - 1) * tr < resampled.shape[1] * 2.0


@settings(max_examples=40, deadline=None)
@given(
    frames=st.integers(2, 300),
    tr=st.floats(0.4, 3.5),
    level=st.floats(-1e4, 1e4),
)
def test_resampling_keeps_constants_and_stays_within_the_recording(frames: int, tr: float, level: float) -> None:
    resampled = signals.resample(np.full((1, frames), level), tr, 2.0)
    assert resampled.shape[1] == signals.n_resampled(frames, tr, 2.0) >= 1
    np.testing.assert_allclose(resampled, level, rtol=1e-9, atol=1e-9)


def test_equal_repetition_times_give_an_equal_copy(random: np.random.Generator) -> None:
    series = walks(random, 2, 50)
    result = signals.resample(series, 2.0, 2.0)
    np.testing.assert_array_equal(result, series)
    assert result is not series


@settings(max_examples=40, deadline=None)
@given(scale=st.floats(1e-3, 1e4), shift=st.floats(-1e4, 1e4))
def test_zscore_is_blind_to_scale_and_shift(scale: float, shift: float) -> None:
    series = np.random.default_rng(3).normal(size=(2, 60))
    result = signals.zscore(series * scale + shift)
    np.testing.assert_allclose(result.mean(axis=1), 0, atol=1e-7)
    np.testing.assert_allclose(result.std(axis=1), 1, atol=2e-5)


def test_zscore_by_hand() -> None:
    np.testing.assert_allclose(signals.zscore(np.array([[1.0, 3.0], [5.0, 5.0]])), [[-1, 1], [0, 0]], atol=1e-7)
