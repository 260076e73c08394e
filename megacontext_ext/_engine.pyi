"""The private compiled module. Its classes are typed by the wrappers around them."""

from typing import Any

def __getattr__(name: str) -> Any: ...
