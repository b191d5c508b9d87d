"""Found by Python itself where this folder is on ``PYTHONPATH``: the decoder is a poisoned one."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[3]))

from tests.reliability.poisoned import decoder

decoder.install()
