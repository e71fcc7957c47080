"""Where in the user's model something happened: source line and module path, without absolute paths."""

from __future__ import annotations

import re
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

_FRONTEND_DIR = str(Path(__file__).resolve().parent)
_CONVERT_FILE = str(Path(__file__).resolve().parent.parent / "conversion.py")
_STDLIB_DIR = str(Path(traceback.__file__).resolve().parent)
_FRAME = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')


def is_user_file(path: str) -> bool:
    """True for a source file that belongs to no installed package, nor to the interpreter or this frontend."""
    if not path or path.startswith("<") or "site-packages" in path or "dist-packages" in path:
        return False
    if path.startswith(("torch/", "torch\\")):  # torch strips its own prefix from some recorded frames
        return False
    resolved = str(Path(path).resolve()) if Path(path).is_absolute() else path
    return not resolved.startswith((_FRONTEND_DIR, _CONVERT_FILE, _STDLIB_DIR))


def short(path: str, line: int) -> str:
    """File name and line as they appear in messages and artifacts: "resnet.py:39"."""
    return f"{Path(path).name}:{line}"


def of_node(node: Any) -> str:
    """The line that made an fx node: the user's own if there is one, else that of a model library, else ""."""
    frames = [(path, int(line)) for path, line in _FRAME.findall(node.meta.get("stack_trace") or "")]
    for path, line in reversed(frames):
        if is_user_file(path):
            return short(path, line)
    for path, line in reversed(frames):
        if "torch" not in Path(path).parts and not path.startswith(_FRONTEND_DIR):
            return short(path, line)
    return ""


def of_exception(error: BaseException) -> str:
    """The innermost user frame that an exception passed through, or ""."""
    current: BaseException | None = error
    while current is not None:
        for frame in reversed(traceback.extract_tb(current.__traceback__)):
            if is_user_file(frame.filename):
                return short(frame.filename, frame.lineno or 0)
        current = current.__cause__ or current.__context__
    return ""


def of_caller() -> str:
    """The innermost user frame on the current Python stack, or ""."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            return short(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return ""


def module_path(node: Any, wrapper_prefix: str) -> str:
    """Path of the innermost module that made an fx node ("layer1.0.conv1"); "" for the model itself."""
    path = ""
    for entry in (node.meta.get("nn_module_stack") or {}).values():
        if isinstance(entry, tuple) and isinstance(entry[0], str) and not entry[0].startswith("_empty_nn_module"):
            path = entry[0]
    # torch writes "layer1.0@1" for the second call of a module.
    path = re.sub(r"@\d+", "", path)
    return "" if path == wrapper_prefix else path.removeprefix(wrapper_prefix + ".")
