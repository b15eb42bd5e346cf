"""The two protocols that everything is measured under (METHOD §5)."""

from __future__ import annotations

from typing import Literal

Protocol = Literal["paper", "strict"]
"""The choices of the authors' code, or what whoever ships the edited model gets."""
