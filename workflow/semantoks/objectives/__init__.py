"""What an encoder is trained for; each objective stands on the same encoder (see :mod:`.self_distillation`)."""
