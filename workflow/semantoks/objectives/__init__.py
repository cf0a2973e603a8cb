"""What an encoder is trained for; each objective stands on the same encoder (see :mod:`.objective`)."""
