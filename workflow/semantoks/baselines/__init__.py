"""Features and heads that a probe table compares: references that need no pretraining, and the heads on all of them."""
