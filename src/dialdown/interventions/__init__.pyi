from .intervention import Intervention, untouched
from .paper import edit, edit_controls, patch, patch_control, steer
from .rank_one import RankOne

__all__ = [
    "Intervention",
    "RankOne",
    "edit",
    "edit_controls",
    "patch",
    "patch_control",
    "steer",
    "untouched",
]
