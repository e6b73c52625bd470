"""Names that options and manifests have for things, without torch, whose import takes seconds."""

import re
from typing import Literal

Positions = Literal["sinusoidal", "learned", "rope", "none"]
Asked = Literal["auto", "direct", "tables"]  # for a method

DTYPE_NAMES = ("float32", "bfloat16", "float16")
DEVICE_NAMES = re.compile(r"auto|cpu|cuda(:[0-9]{1,3})?")
