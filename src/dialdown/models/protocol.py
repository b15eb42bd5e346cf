"""Words of settings and files, without torch: the two protocols that everything is measured under
(METHOD §5), and where in a layer an edit acts.
"""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import DialdownError, nearest

Protocol = Literal["paper", "strict"]
"""The choices of the authors' code, or what whoever ships the edited model gets."""
Site = Literal["mlp", "attention"]
"""The down projections, whose inputs are neurons, or the output projections of attention, whose
inputs are the channels of its heads.
"""


def check_protocols(*protocols: str) -> None:
    """Refuse what is not a protocol (DialdownError)."""
    for protocol in protocols:
        if protocol not in get_args(Protocol):
            raise DialdownError(
                f"Unknown protocol {protocol!r}: {nearest(protocol, get_args(Protocol))}"
            )
