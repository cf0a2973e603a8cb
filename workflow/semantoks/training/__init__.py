"""What training and encoding share: corpus, sampling, settings, optimiser, checkpoints, monitoring."""
