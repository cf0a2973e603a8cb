"""Brain dynamics of one participant: a linear, stationary model written down in the frequency domain.

A parcel r of network n is the sum of four independent Gaussian parts with unit variance together:

- its network's own process, with a spectral peak at the participant's own frequency ``peak[n]``, reaching
  parcel r after a delay ``propagation[n] * position[r]`` (a wave along the network);
- processes shared by all networks with participant-specific loadings (what static FC between networks is);
- a fluctuation common to the whole brain;
- the parcel's own 1/f noise.

Phenotypes move ``peak`` and ``propagation`` only. Every spectrum is normalised to unit variance, so ``peak`` leaves
the variance of each parcel and every zero-lag covariance *between* networks unchanged, and within a network it
changes covariance only through the delays; ``propagation`` enters zero-lag covariance through an even function, so its
sign leaves FC unchanged. Phenotypes are therefore readable from dynamics, not from static FC
(:func:`covariance` gives the exact numbers, which the tests check).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semantoks.simulation.atlas import NETWORKS

PASS_BAND = (0.012, 0.09)
"""All network processes live inside this band [Hz], well inside the usual filter of .01-.1 Hz."""
PEAKS = np.array([0.045, 0.050, 0.058, 0.052, 0.042, 0.060, 0.048, 0.055, 0.050])
"""Spectral peak of each network in the population [Hz]."""
PEAK_WIDTH = 0.2
"""Standard deviation of the spectral peak in log frequency."""
SHARED_PEAK, SHARED_WIDTH, N_SHARED = 0.035, 0.6, 3
"""Spectrum of the processes that networks share."""
SLOWEST_TO_FASTEST = (0.01, 0.12)
"""A parcel's own noise is 1/f between these, flat below, and nothing above [Hz]."""

SHARE_OWN, SHARE_SHARED, SHARE_GLOBAL, SHARE_PARCEL = 0.30, 0.12, 0.08, 0.50
"""Shares of a typical parcel's variance."""


@dataclass(frozen=True)
class Traits:
    """What is stable about one participant's brain dynamics over all recordings.

    Attributes
    ----------
    peak : float64 [9], spectral peak of each network [Hz].
    propagation : float64 [9], delay from the network's middle to its end [s]; the sign is the direction.
    own, shared, common : float64 [parcel], [parcel, N_SHARED], [parcel]: amplitudes of the first three parts.
    parcel : float64 [parcel], amplitude of the parcel's own noise.
    position : float64 [parcel], place of each parcel along its network, -1 to 1.
    network : int [parcel], network of each parcel.
    """

    peak: np.ndarray
    propagation: np.ndarray
    own: np.ndarray
    shared: np.ndarray
    common: np.ndarray
    parcel: np.ndarray
    position: np.ndarray
    network: np.ndarray


def parcel_series(traits: Traits, tr: float, n_frames: int, random: np.random.Generator) -> np.ndarray:
    """One recording of the parcels' neural signal, float64 [parcel, time], expected variance 1, no artefacts.

    Parameters
    ----------
    tr : repetition time [s].
    """
    n_fft = 1 << int(np.ceil(np.log2(1.5 * n_frames)))  # longer than the recording: no circular correlation
    frequency = np.fft.rfftfreq(n_fft, tr)
    own = _noise(random, network_spectra(traits.peak, frequency))
    shared = _noise(random, np.tile(shared_spectrum(frequency), (N_SHARED + 1, 1)))
    parcel = _noise(random, np.broadcast_to(parcel_spectrum(frequency), (len(traits.network), len(frequency))))
    delay = traits.propagation[traits.network] * traits.position
    spectrum = own[traits.network] * np.exp(-2j * np.pi * delay[:, None] * frequency) * traits.own[:, None]
    spectrum += traits.shared @ shared[:N_SHARED] + traits.common[:, None] * shared[N_SHARED]
    spectrum += traits.parcel[:, None] * parcel
    series: np.ndarray = np.fft.irfft(spectrum, n_fft)[:, :n_frames]
    return series


def covariance(traits: Traits, tr: float = 1.0) -> np.ndarray:
    """Expected zero-lag covariance of the parcels, float64 [parcel, parcel], written out (Wiener-Khinchin)."""
    frequency = np.fft.rfftfreq(1024, tr)
    spectra = network_spectra(traits.peak, frequency)
    delay = traits.propagation[traits.network] * traits.position
    result: np.ndarray = traits.shared @ traits.shared.T + np.outer(traits.common, traits.common)
    result += np.diag(traits.parcel**2)
    for network in range(len(NETWORKS)):
        members = np.flatnonzero(traits.network == network)
        lag = delay[members][:, None] - delay[members]
        lagged = np.tensordot(np.cos(2 * np.pi * lag[..., None] * frequency), spectra[network], axes=1)
        result[np.ix_(members, members)] += np.outer(traits.own[members], traits.own[members]) * lagged
    return result


def network_spectra(peak: np.ndarray, frequency: np.ndarray) -> np.ndarray:
    """Power spectra of the networks' own processes, float64 [9, frequency], each summing to 1."""
    return np.stack([_bump(frequency, p, PEAK_WIDTH) for p in peak])


def shared_spectrum(frequency: np.ndarray) -> np.ndarray:
    """Power spectrum of the shared and the common processes, float64 [frequency], sum 1."""
    return _bump(frequency, SHARED_PEAK, SHARED_WIDTH)


def parcel_spectrum(frequency: np.ndarray) -> np.ndarray:
    """Power spectrum of a parcel's own noise, float64 [frequency], sum 1: 1/f, and slow as blood flow is."""
    inside = (frequency > 0) & (frequency <= SLOWEST_TO_FASTEST[1])
    power: np.ndarray = np.where(inside, 1 / np.maximum(frequency, SLOWEST_TO_FASTEST[0]), 0)
    power /= power.sum()
    return power


def _bump(frequency: np.ndarray, peak: float, width: float) -> np.ndarray:
    low, high = PASS_BAND
    inside = (frequency >= low) & (frequency <= high)
    power: np.ndarray = np.where(inside, np.exp(-0.5 * (np.log(np.maximum(frequency, low) / peak) / width) ** 2), 0)
    power /= power.sum()
    return power


def _noise(random: np.random.Generator, power: np.ndarray) -> np.ndarray:
    """Fourier coefficients, complex [n, frequency], of unit-variance Gaussian processes with these power spectra."""
    n_fft = 2 * (power.shape[-1] - 1)
    real, imaginary = random.standard_normal((2, *power.shape))
    coefficients: np.ndarray = n_fft * np.sqrt(power) * (real + 1j * imaginary) / 2
    return coefficients
