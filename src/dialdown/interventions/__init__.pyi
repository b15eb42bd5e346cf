from .intervention import Intervention, untouched
from .paper import edit, edit_controls, patch, patch_control, steer

__all__ = ["Intervention", "edit", "edit_controls", "patch", "patch_control", "steer", "untouched"]
