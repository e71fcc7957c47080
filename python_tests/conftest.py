"""What has to be settled before anything is imported."""

from __future__ import annotations

import os

# Triton decides when it is first imported whether its kernels run in the interpreter, and torch.export imports it.
os.environ["TRITON_INTERPRET"] = "1"
