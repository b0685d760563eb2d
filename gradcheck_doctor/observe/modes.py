"""Our place in the stack of torch function modes: below the user's own."""
from __future__ import annotations

from torch.overrides import TorchFunctionMode, _len_torch_function_stack, _pop_mode, _push_mode  # type: ignore[attr-defined]


class modes_lifted:
    """While open, the user's function modes are off the stack; afterwards they are back on top of whatever was pushed."""

    def __enter__(self) -> None:
        self.lifted = [_pop_mode() for _ in range(_len_torch_function_stack())]

    def __exit__(self, *_: object) -> None:
        for mode in reversed(self.lifted):
            _push_mode(mode)


def drop_mode(ours: TorchFunctionMode) -> None:
    """Take our mode off the stack, wherever in it it is, and leave the others in their order."""
    others = [mode for mode in (_pop_mode() for _ in range(_len_torch_function_stack())) if mode is not ours]
    for mode in reversed(others):
        _push_mode(mode)
