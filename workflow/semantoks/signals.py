"""Cleaning and resampling of time series, as pure functions on arrays ``[ROI, time]``.

Everything is computed and returned in float64. A row without data is all NaN: it stays NaN and leaves
the other rows alone. Steps are called in the one order of processing of this workflow: interpolate
censored volumes, detrend, band-pass signals and confounds alike, regress, resample, z-score.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import interpolate, signal

Numbers = NDArray[Any]
Floats = NDArray[np.float64]
Booleans = NDArray[np.bool_]


def rows_with_data(signals: Numbers) -> Booleans:
    """Which rows hold data: finite at all times and not constant.

    Parameters
    ----------
    signals : float [ROI, time]; call it before cleaning, which turns a constant into rounding noise.

    Returns
    -------
    bool [ROI]
    """
    signals = np.asarray(signals)
    with np.errstate(invalid="ignore"):
        with_data: Booleans = np.isfinite(signals).all(axis=1) & (np.ptp(signals, axis=1) > 0)
    return with_data


def interpolate_censored(signals: Numbers, kept: Numbers) -> Floats:
    """Replace censored volumes by a cubic spline through the kept ones.

    Before the first and after the last kept volume the nearest kept value is held: a spline extrapolates
    without bound there. With fewer than four kept volumes the interpolation is linear.

    Parameters
    ----------
    signals : float [ROI, time]
    kept : bool [time], False where a volume is censored.

    Raises
    ------
    ValueError
        When no volume is kept.

    References
    ----------
    Power et al. (2014), NeuroImage 84:320-341, on interpolating over censored volumes before filtering.
    """
    signals = np.array(signals, dtype=np.float64)
    kept = np.asarray(kept, dtype=bool)
    times = np.flatnonzero(kept)
    if times.size == 0:
        raise ValueError("every volume is censored, nothing is left to interpolate from")
    if kept.all():
        return signals
    rows = np.isfinite(signals[:, kept]).all(axis=1)
    at = np.clip(np.flatnonzero(~kept), times[0], times[-1])
    known = signals[np.ix_(rows, times)]
    if times.size >= 4:
        values = interpolate.CubicSpline(times, known, axis=1)(at)
    else:
        values = np.array([np.interp(at, times, row) for row in known]).reshape(len(known), len(at))
    signals[np.ix_(rows, ~kept)] = values
    return signals


def detrend(signals: Numbers, kept: Numbers | None = None) -> Floats:
    """Remove mean and linear trend of each row.

    Parameters
    ----------
    signals : float [ROI, time]
    kept : bool [time]; where given, mean and trend are those of the kept volumes as they follow each other, without
        the gaps between them, as ``nilearn.signal.clean`` has them without a filter. A censored volume lies between
        its kept neighbours. None means all volumes.

    Returns
    -------
    float64 [ROI, time]
    """
    signals = np.asarray(signals, dtype=np.float64)
    use = np.ones(signals.shape[1], dtype=bool) if kept is None else np.asarray(kept, dtype=bool)
    frames = np.flatnonzero(use)
    time = np.interp(np.arange(signals.shape[1]), frames, np.arange(frames.size))
    time -= time[use].mean()
    scale = float(time[use] @ time[use]) or 1.0
    known = signals if use.all() else signals[:, use]
    slope = (known @ time[use]) / scale
    result: Floats = signals - known.mean(axis=1, keepdims=True) - slope[:, None] * time
    return result


def band_pass(signals: Numbers, tr: float, low: float | None, high: float | None, order: int = 5) -> Floats:
    """Zero-phase Butterworth filter, forwards and backwards, with odd padding at both ends.

    Parameters
    ----------
    signals : float [ROI, time]
    tr : repetition time in s.
    low, high : edges of the pass-band in Hz; None leaves that side open.
    order : order of the filter; running it twice doubles the attenuation (−6 dB at the edges).

    Raises
    ------
    ValueError
        When the pass-band is empty or reaches the Nyquist frequency of ``tr``.

    References
    ----------
    Gustafsson (1996) on zero-phase filtering; padding and order as in ``nilearn.signal.butterworth``.
    """
    signals = np.asarray(signals, dtype=np.float64)
    nyquist = 0.5 / tr
    if low is None and high is None:
        return signals.copy()
    if high is not None and high >= nyquist:
        raise ValueError(f"the band-pass ends at {high:g} Hz, at or above the Nyquist frequency {nyquist:.4g} Hz")
    if low is not None and not 0 < low < (nyquist if high is None else high):
        raise ValueError(f"the band-pass {low:g} to {high or nyquist:g} Hz is empty")
    sections = _butterworth(order, low, high, tr)
    # scipy pads 3 × (taps) samples; a recording shorter than that is padded as far as it goes
    padding = 3 * (2 * len(sections) + 1 - min((sections[:, 2] == 0).sum(), (sections[:, 5] == 0).sum()))
    padding = min(int(padding), signals.shape[1] - 1)
    result: Floats = signal.sosfiltfilt(sections, signals, axis=1, padtype="odd", padlen=padding)
    return result


@functools.lru_cache(maxsize=16)
def _butterworth(order: int, low: float | None, high: float | None, tr: float) -> Floats:
    """Second-order sections of the filter, the same for all recordings of one repetition time."""
    if low is None:
        sections = signal.butter(order, high, "lowpass", fs=1 / tr, output="sos")
    elif high is None:
        sections = signal.butter(order, low, "highpass", fs=1 / tr, output="sos")
    else:
        sections = signal.butter(order, (low, high), "bandpass", fs=1 / tr, output="sos")
    return np.asarray(sections, dtype=np.float64)


def regress(signals: Numbers, confounds: Numbers, kept: Numbers | None = None) -> Floats:
    """Subtract what the confounds explain, with weights estimated on the kept volumes only.

    The confounds are centred on the kept volumes; the residual therefore keeps the mean of ``signals``.
    Confounds that depend on each other, or are constant, do no harm: they are left out.

    Parameters
    ----------
    signals : float [ROI, time]
    confounds : float [regressor, time], finite.
    kept : bool [time]; None means all volumes.

    Returns
    -------
    float64 [ROI, time], residuals at every volume.
    """
    signals = np.asarray(signals, dtype=np.float64)
    confounds = np.asarray(confounds, dtype=np.float64)
    use = np.ones(signals.shape[1], dtype=bool) if kept is None else np.asarray(kept, dtype=bool)
    confounds = confounds[_vary(confounds[:, use], _magnitude(confounds[:, use]))]
    if len(confounds) == 0:
        return signals.copy()
    confounds = confounds - confounds[:, use].mean(axis=1, keepdims=True)
    confounds /= confounds[:, use].std(axis=1, keepdims=True)
    weights = signals[:, use] @ np.linalg.pinv(confounds[:, use], rcond=1e-10)
    result: Floats = signals - weights @ confounds
    return result


def _magnitude(confounds: Floats) -> Floats:
    """Largest absolute value of each row, [regressor]."""
    magnitude: Floats = np.abs(confounds).max(axis=1, initial=0.0)
    return magnitude


def _vary(confounds: Floats, magnitude: Floats) -> Booleans:
    """Which rows hold more than the rounding errors of numbers of this magnitude, bool [regressor].

    Scaled to unit variance, the rounding errors that steps before leave of a constant would be a regressor of noise.
    """
    vary: Booleans = np.ptp(confounds, axis=1) > 1e-10 * magnitude
    return vary


def n_resampled(n_frames: int, tr: float, target_tr: float) -> int:
    """Number of samples at ``target_tr`` (s) within the span of ``n_frames`` volumes at ``tr`` (s)."""
    return math.floor((n_frames - 1) * tr / target_tr + 1e-6) + 1


def resample(signals: Numbers, tr: float, target_tr: float) -> Floats:
    """Resample to another repetition time without aliasing.

    Kaiser-windowed sinc interpolation at 0, ``target_tr``, 2 ``target_tr``, …: frequencies up to 0.75 of
    the smaller of the two Nyquist frequencies pass, those above it are 70 dB down. Ends are padded by odd
    reflection. Equal repetition times give a copy.

    Parameters
    ----------
    signals : float [ROI, time]
    tr, target_tr : repetition times in s.

    Returns
    -------
    float64 [ROI, n_resampled(time, tr, target_tr)]

    References
    ----------
    Kaiser window design: Oppenheim & Schafer, Discrete-Time Signal Processing, section 7.5.
    """
    signals = np.asarray(signals, dtype=np.float64)
    if abs(tr - target_tr) < 1e-6 or signals.shape[1] < 2:
        return signals.copy()
    n_frames = signals.shape[1]
    nyquist = min(0.5 / tr, 0.5 / target_tr)
    attenuation = 70.0
    width = 0.25 * nyquist
    half = (attenuation - 8) / (2.285 * 2 * math.pi * width) / 2
    padding = min(math.ceil(half / tr) + 1, n_frames - 1)
    padded = _reflect_odd(signals, padding)
    source = (np.arange(padded.shape[1]) - padding) * tr
    target = np.arange(n_resampled(n_frames, tr, target_tr)) * target_tr
    distance = source[:, None] - target[None, :]
    inside = np.clip(1 - (distance / half) ** 2, 0, None)
    window = np.where(np.abs(distance) <= half, np.i0(signal.kaiser_beta(attenuation) * np.sqrt(inside)), 0.0)
    kernel = window * np.sinc(2 * (nyquist - width / 2) * distance)
    result: Floats = padded @ (kernel / kernel.sum(axis=0))
    return result


def _reflect_odd(signals: Floats, padding: int) -> Floats:
    """Continue each row by its point reflection at both ends, ``padding`` samples on either side."""
    before = 2 * signals[:, :1] - signals[:, padding:0:-1]
    after = 2 * signals[:, -1:] - signals[:, -2 : -padding - 2 : -1]
    return np.concatenate([before, signals, after], axis=1)


def zscore(signals: Numbers) -> Floats:
    """Z-score each row of ``signals`` [ROI, time]: standard deviation with ddof 0, plus 1e-8."""
    signals = np.asarray(signals, dtype=np.float64)
    centred = signals - signals.mean(axis=1, keepdims=True)
    result: Floats = centred / (centred.std(axis=1, keepdims=True) + 1e-8)
    return result


def clean(
    signals: Numbers,
    tr: float,
    confounds: Numbers | None = None,
    kept: Numbers | None = None,
    pass_band: tuple[float | None, float | None] = (None, None),
    remove_trend: bool = True,
) -> Floats:
    """Interpolate, detrend, band-pass and regress, in this order.

    On the kept volumes the result is that of ``nilearn.signal.clean`` with ``extrapolate=False``: with a filter, trend
    and filter run over the interpolated series from the first to the last kept volume; without one, only kept volumes
    count. Other than there, a confound that is constant, or that detrending takes away, is left out; its rounding
    errors are not regressed.

    Parameters
    ----------
    signals : float [ROI, time]
    tr : repetition time in s.
    confounds : float [regressor, time], raw; they go through the same steps as the signals.
    kept : bool [time], False where a volume is censored; None keeps all.
    pass_band : edges of the band-pass in Hz.
    remove_trend : remove mean and linear trend.

    Returns
    -------
    float64 [ROI, time], of unchanged length: censored volumes hold interpolated values, those before the first and
    after the last kept volume its cleaned value.

    Raises
    ------
    ValueError
        When no volume is kept, or as :func:`band_pass`.

    References
    ----------
    Lindquist et al. (2019), Human Brain Mapping 40:2358-2376: filtering signals and confounds alike keeps
    the regression from bringing removed frequencies back.
    """
    n_rois, n_frames = np.shape(signals)
    frames = np.arange(n_frames) if kept is None else np.flatnonzero(kept)
    if frames.size == 0:
        raise ValueError("every volume is censored, nothing is left to clean")
    span = slice(frames[0], frames[-1] + 1)
    use = np.isin(np.arange(n_frames)[span], frames)
    series: Numbers = np.asarray(signals, dtype=np.float64)
    if confounds is not None:
        series = np.concatenate([series, confounds])
    series = interpolate_censored(series[:, span], use)
    magnitude = _magnitude(series[n_rois:, use])
    if remove_trend:
        filtered = any(edge is not None for edge in pass_band)
        series = detrend(series, None if filtered else use)
    vary = _vary(series[n_rois:, use], magnitude)
    if not vary.all():
        series = np.concatenate([series[:n_rois], series[n_rois:][vary]])
    series = band_pass(series, tr, *pass_band)
    cleaned = regress(series[:n_rois], series[n_rois:], use)
    return np.pad(cleaned, ((0, 0), (span.start, n_frames - span.stop)), mode="edge")
