"""Lazy import of PyTorch's compiler: it is loaded only when something is really compiled.

Lightning refers to a class of the compiler at import, and an optimizer calls the compiler in every
step to be excluded from compilation. Either imports ``torch._dynamo``, and with it SymPy, Inductor,
FSDP, ONNX and thousands of other modules, which takes half of a training's start. So a stand-in
module handles these uses as the compiler would, and is replaced by the real one on any other use.
The stand-in also serves

- ``DistributedDataParallel``, which asks for the compiler's DDP mode,
- torchvision, and with it timm, which imports a function of ``torch._dynamo.utils`` but calls it
  in only a few operations,
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
#: A module of the compiler that imports no other; transformers imports a class from it.
APART = f"{NAME}._trace_wrapped_higher_order_op"


def install() -> None:
    """Install the stand-in as PyTorch's compiler, unless the compiler is already imported."""
    import torch

    if NAME in sys.modules:
        return
    stand_in = LateCompiler()
    sys.modules[NAME] = stand_in
    torch._dynamo = stand_in
    sys.meta_path.insert(0, _SubmoduleFinder())
    torch.use_deterministic_algorithms = _skip_if_unchanged(torch.use_deterministic_algorithms)


def _skip_if_unchanged(use: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``torch.use_deterministic_algorithms`` to skip calls that would change nothing.

    The function imports Inductor to pass the setting on, and every trainer calls it, usually
    without changing anything.
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
    """Import the compiler and replace the stand-in by it."""
    import torch

    if isinstance(sys.modules.get(NAME), LateCompiler):
        sys.meta_path[:] = [
            finder for finder in sys.meta_path if not isinstance(finder, _SubmoduleFinder)
        ]
        del sys.modules[NAME]
        sys.modules.pop(UTILS, None)
        vars(torch).pop("_dynamo", None)
    module = importlib.import_module(NAME)
    while _DEFERRED:
        name, fn = _DEFERRED.pop(0)
        getattr(module, name)(fn)
    if APART in sys.modules:
        setattr(module, APART.rpartition(".")[2], sys.modules[APART])
    return module


class _OptimizedModuleMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        module = _loaded()
        return module is not None and isinstance(instance, module.OptimizedModule)


@final
class _OptimizedModule(metaclass=_OptimizedModuleMeta):
    """Stand-in for ``OptimizedModule``; has no instances until something is compiled."""


def _disable(
    fn: Callable[..., Any] | None = None, recursive: bool = True, **options: Any
) -> Callable[..., Any]:
    """``torch._dynamo.disable``, applied to the function once the compiler is loaded."""
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


#: Names of the compiler's decorators, and functions to apply them to once it is loaded.
_DEFERRED: list[tuple[str, Callable[..., Any]]] = []


def _late_decorator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator that returns the function unchanged; the compiler marks it once it is loaded."""

    def decorate(fn: Callable[..., Any]) -> Callable[..., Any]:
        module = _loaded()
        if module is not None:
            decorated: Callable[..., Any] = getattr(module, name)(fn)
            return decorated
        _DEFERRED.append((name, fn))
        return fn

    return decorate


def _graph_break(*_: object, **__: object) -> None:
    """``torch._dynamo.graph_break``, which does nothing outside compiled code."""


@final
class _LateTraceRules:
    """``torch._dynamo.trace_rules`` until it is needed."""

    @staticmethod
    def clear_lru_cache() -> None:
        """Clear the cache, which is empty until the compiler is loaded."""
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
        # Makes it a package; _SubmoduleFinder finds its modules.
        self.__path__ = []

    def __getattr__(self, name: str) -> Any:
        # inspect reads __file__ of every module, even during imports.
        if name.startswith("__"):
            raise AttributeError(f"module {NAME!r} has no attribute {name!r}")
        if name == "utils" and _loaded() is None:
            return importlib.import_module(UTILS)
        return getattr(_load(), name)


def _is_compile_supported(device_type: Any) -> Any:
    """``torch._dynamo.utils.is_compile_supported``: whether code for a device can be compiled."""
    _load()
    return importlib.import_module(UTILS).is_compile_supported(device_type)


# As on the real function: its result is a constant during compilation.
_is_compile_supported._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _get_optimize_ddp_mode() -> str:
    """``torch._dynamo.utils.get_optimize_ddp_mode``: the compiler's DDP mode.

    Returns the default until the compiler is loaded, since setting the mode loads it.
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
class _SubmoduleFinder(MetaPathFinder):
    """Imports the compiler before any of its modules, except for ``UTILS`` and ``APART``."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(f"{NAME}."):
            return None
        if fullname == UTILS:
            return ModuleSpec(fullname, _ExistingModuleLoader(_LateUtils()))
        if fullname == APART:
            import torch

            return PathFinder.find_spec(fullname, [f"{torch.__path__[0]}/_dynamo"])
        compiler = _load()
        if fullname in sys.modules:
            return ModuleSpec(fullname, _ExistingModuleLoader(sys.modules[fullname]))
        return PathFinder.find_spec(fullname, compiler.__path__)


@final
class _ExistingModuleLoader(Loader):
    """Loader that returns an existing module."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.spec = module.__spec__
        # With its own spec Python would load it again. Some modules don't allow setattr.
        vars(module)["__spec__"] = None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec
