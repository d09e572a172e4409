"""A runtime hook of the app's own: what it leaves behind is there in a worker too."""

import os
import sys

sys.effect_of_the_hook = f"{os.path.basename(__file__)} ran in {__name__}"  # type: ignore[attr-defined]
name_from_the_hook = "left in __main__"
