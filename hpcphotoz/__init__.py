"""Adversarially trained photometric redshifts, from a laptop to a multi-node GPU cluster."""

__version__ = "0.1.0"
