"""What a model or a loss that a transformation of torch cannot handle may raise."""

from __future__ import annotations

# FedSensError is none of these
UNSUPPORTED = (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError)
