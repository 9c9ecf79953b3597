# MuJoCo's bindings are compiled and ship no stubs; without this file every name in them is an error.
from typing import Any

def __getattr__(name: str) -> Any: ...
