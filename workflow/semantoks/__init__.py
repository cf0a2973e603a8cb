"""From BIDS datasets to self-supervised fMRI encoders, probes and the tables of a paper."""

__version__ = "0.1.0"
