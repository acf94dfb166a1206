"""PyTorch's compiler, imported once something really compiles.

Lightning names a class of the compiler as it is imported, and an optimizer calls it in every step
to say that it is not to be compiled. Either imports ``torch._dynamo``, and with it SymPy, Inductor,
FSDP, ONNX and thousands of other modules: half of the time that a training takes to start. So a
module stands in for it that answers these questions as the compiler would, and gives way to the
real one with the first other question. It also answers

- ``DistributedDataParallel``, which asks how the compiler treats it,
- torchvision, and with it timm, which imports a function of ``torch._dynamo.utils`` that it calls
  in a few of its operations alone,
- transformers, which marks some functions for the compiler.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any, final

NAME = "torch._dynamo"
UTILS = f"{NAME}.utils"
#: A module of the compiler that needs no other, of which transformers imports a class.
APART = f"{NAME}._trace_wrapped_higher_order_op"


def install() -> None:
    """Put the stand-in where PyTorch looks for its compiler, unless that has been imported."""
    import torch

    if NAME in sys.modules:
        return
    stand_in = LateCompiler()
    sys.modules[NAME] = stand_in
    torch._dynamo = stand_in
    sys.meta_path.insert(0, _Submodules())
    torch.use_deterministic_algorithms = _only_to_change(torch.use_deterministic_algorithms)


def _only_to_change(use: Callable[..., None]) -> Callable[..., None]:
    """``torch.use_deterministic_algorithms``, which imports Inductor to tell it what it is told.

    Every trainer asks for what is so already.
    """

    @functools.wraps(use)
    def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
        import torch

        if mode or torch.are_deterministic_algorithms_enabled():
            use(mode, warn_only=warn_only)

    return use_deterministic_algorithms


def _loaded() -> ModuleType | None:
    """The compiler, if it has been imported."""
    module = sys.modules.get(NAME)
    return None if isinstance(module, LateCompiler) else module


def _load() -> ModuleType:
    """Import the compiler, and let it take its place."""
    import torch

    if isinstance(sys.modules.get(NAME), LateCompiler):
        sys.meta_path[:] = [each for each in sys.meta_path if not isinstance(each, _Submodules)]
        del sys.modules[NAME]
        sys.modules.pop(UTILS, None)
        vars(torch).pop("_dynamo", None)
    module = importlib.import_module(NAME)
    while _TOLD:
        name, fn = _TOLD.pop(0)
        getattr(module, name)(fn)
    if APART in sys.modules:
        setattr(module, APART.rpartition(".")[2], sys.modules[APART])
    return module


class _WhatWasCompiled(type):
    def __instancecheck__(cls, instance: object) -> bool:
        module = _loaded()
        return module is not None and isinstance(instance, module.OptimizedModule)


@final
class _OptimizedModule(metaclass=_WhatWasCompiled):
    """Of which nothing is an instance, as long as nothing was compiled."""


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """``torch._dynamo.disable``: a function that is not compiled, once there is a compiler."""
    if fn is None:
        return functools.partial(_disable, recursive=recursive, **options)
    disabled: list[Callable[..., Any]] = []

    @functools.wraps(fn)
    def uncompiled(*args: Any, **kwargs: Any) -> Any:
        module = _loaded()
        if module is None:
            return fn(*args, **kwargs)
        if not disabled:
            disabled.append(module.disable(fn, recursive, **options))
        return disabled[0](*args, **kwargs)

    return uncompiled


#: What the compiler is to be told of functions once it is there: by which of its decorators.
_TOLD: list[tuple[str, Callable[..., Any]]] = []


def _late_decorator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that gives the function as it is, and tells the compiler of it later."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        module = _loaded()
        if module is not None:
            decorated: Callable[..., Any] = getattr(module, name)(fn)
            return decorated
        _TOLD.append((name, fn))
        return fn

    return decorate


def _graph_break(*_: object, **__: object) -> None:
    """``torch._dynamo.graph_break`` outside of what is compiled: nothing."""


@final
class _LateTraceRules:
    """``torch._dynamo.trace_rules`` until it is needed."""

    @staticmethod
    def clear_lru_cache() -> None:
        """Forget what was found out while something was compiled: nothing."""
        module = _loaded()
        if module is not None:
            module.trace_rules.clear_lru_cache()

    def __getattr__(self, name: str) -> Any:
        return getattr(_load().trace_rules, name)


@final
class LateCompiler(ModuleType):
    """``torch._dynamo`` until it is needed."""

    OptimizedModule = _OptimizedModule
    disable = staticmethod(_disable)
    graph_break = staticmethod(_graph_break)
    allow_in_graph = staticmethod(_late_decorator("allow_in_graph"))
    assume_constant_result = staticmethod(_late_decorator("assume_constant_result"))
    trace_rules = _LateTraceRules()

    def __init__(self) -> None:
        super().__init__(NAME, __doc__)
        # A package, of which _Submodules finds the modules.
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        # inspect asks every module for its file, in the middle of imports as well.
        if name.startswith("__"):
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        if name == "utils" and _loaded() is None:
            return importlib.import_module(UTILS)
        return getattr(_load(), name)


def _is_compile_supported(device_type: Any) -> Any:
    """``torch._dynamo.utils.is_compile_supported``: whether a device's code can be compiled."""
    _load()
    return importlib.import_module(UTILS).is_compile_supported(device_type)


# As the real one has it: its answer stands while something is compiled.
_is_compile_supported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _get_optimize_ddp_mode() -> str:
    """``torch._dynamo.utils.get_optimize_ddp_mode``: how what is compiled works with DDP.

    The compiler's default, since whoever sets it imports the compiler.
    """
    if _loaded() is None:
        return "ddp_optimizer"
    mode: str = importlib.import_module(UTILS).get_optimize_ddp_mode()
    return mode


@final
class _LateUtils(ModuleType):
    """``torch._dynamo.utils`` until it is needed."""

    is_compile_supported = staticmethod(_is_compile_supported)
    get_optimize_ddp_mode = staticmethod(_get_optimize_ddp_mode)

    def __init__(self) -> None:
        super().__init__(UTILS, __doc__)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {UTILS!r} has no attribute {name!r}")
        _load()
        return getattr(importlib.import_module(UTILS), name)


@final
class _Submodules(MetaPathFinder):
    """Imports the compiler before a module of it is imported, but for the two above."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{NAME}."):
            return None
        if fullname == UTILS:
            return ModuleSpec(fullname, _AlreadyThere(_LateUtils()))
        if fullname == APART:
            import torch

            return PathFinder.find_spec(fullname, [f"{torch.__path__[0]}/_dynamo"])
        compiler = _load()
        if fullname in sys.modules:
            return ModuleSpec(fullname, _AlreadyThere(sys.modules[fullname]))
        return PathFinder.find_spec(fullname, compiler.__path__)


@final
class _AlreadyThere(Loader):
    """Gives a module that has been imported meanwhile."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = module.__spec__
        # Python would load it a second time by its own spec. Not setattr: some modules refuse it.
        vars(module)["__spec__"] = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec
