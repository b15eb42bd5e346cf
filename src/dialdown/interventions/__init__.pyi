from .intervention import Intervention as Intervention
from .intervention import untouched as untouched
from .paper import edit as edit
from .paper import edit_controls as edit_controls
from .paper import patch as patch
from .paper import patch_control as patch_control
from .paper import steer as steer
from .rank_one import RankOne as RankOne
