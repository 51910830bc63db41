"""Code of users: modules that register methods, models and sources of images from outside the package. Imports no torch.

A plugin is a Python module whose import calls `dfkd.methods.register_method`, `dfkd.config.register_model` or
`dfkd.config.register_source`. It is found by an entry point of the group `dfkd.plugins`, or named by `plugins:` in
config/config.yaml. docs/extending.md shows one of each.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import os
import re
import sys
from collections.abc import Iterable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from dfkd.errors import UserError

GROUP = "dfkd.plugins"  # of the entry points
VARIABLE = "DFKD_PLUGINS"  # how the workflow passes the config's plugins on to the stages
TARGET = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")

_loaded: set[str] = set()  # modules of plugins that were imported
_loading: list[str] = []  # those being imported, the innermost last
_modules: dict[tuple[str, str], tuple[str, ...]] = {}  # ("model", "mynet") → the modules in which its code lies


def load_plugins(names: Iterable[str] = ()) -> None:
    """Import every installed plugin (entry points), then `names`: importable modules, or paths of .py files. Each once.

    The folder of a .py file goes to the end of `sys.path`, so that the file can name modules beside it.

    Raises:
        UserError: a plugin is missing, or its import fails; names the plugin and the error.
    """
    for point in entry_points(group=GROUP):
        _import(point.module, point.name)
    for name in names:
        _import(_module_of_file(name) if _is_path(name) else name, name)


def configured(folder: str | Path = "config") -> list[str]:
    """The plugins that a stage has to load: those that the workflow passes on, else those of `folder`/config.yaml.

    A config that cannot be read names none: the commands that need it say what is wrong with it.
    """
    passed = os.environ.get(VARIABLE)
    if passed is not None:
        return [name for name in passed.split(os.pathsep) if name]
    try:
        content = yaml.safe_load((Path(folder) / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    return named(content)


def named(content: Any) -> list[str]:
    """`plugins` of an unvalidated config; empty if it is not the list of names that it should be."""
    names = content.get("plugins") if isinstance(content, dict) else None
    return names if isinstance(names, list) and all(isinstance(name, str) and name for name in names) else []


def passed_on(names: Iterable[str]) -> str:
    """`names` as the value of `VARIABLE`: paths made absolute."""
    return os.pathsep.join(str(_path(name)) if _is_path(name) else name for name in names)


def load(where: str) -> Any:
    """What `module:attribute` names, imported now.

    Raises:
        UserError: there is no such module or attribute, or the module's own imports fail.
    """
    module, _, name = where.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"'{where}' cannot be imported ({error}); mend the module or what names it.") from error


def note(kind: str, name: str, form: str, taken: Iterable[str], *targets: str) -> None:
    """Check a registration and remember in which modules its code lies. For the functions `register_…`.

    Args:
        kind: `method`, `model` or `source`.
        form: what the name has to look like, a regular expression.
        taken: the names there are.
        targets: `module:attribute` each.

    Raises:
        UserError: an ill-formed or taken name, an ill-formed target.
    """
    if not isinstance(name, str) or not re.fullmatch(form, name):
        raise UserError(f"{kind} {name!r}: a {kind}'s name consists of {form}, because it is part of targets; choose another.")
    if name in taken:
        raise UserError(f"{kind} '{name}' is there already; choose another name.")
    for target in targets:
        if not isinstance(target, str) or not TARGET.fullmatch(target):
            raise UserError(f"{kind} '{name}': {target!r} is not of the form module:attribute, e.g. 'mypackage.mine:Mine'.")
    modules = {*_loading[-1:], *(target.partition(":")[0] for target in targets)}
    _modules[kind, name] = tuple(sorted(module for module in modules if module.partition(".")[0] != "dfkd"))


def code_hash(kind: str, name: str) -> str:
    """SHA-256 of the source files behind a registered name; empty for what the package brings along.

    Read are the files of the plugin's module and of the modules it names, or all .py files of the packages they belong to.
    """
    modules = _modules.get((kind, name), ())
    return _hash(tuple(sorted({module.partition(".")[0] for module in modules}))) if modules else ""


@functools.cache
def _hash(modules: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        spec = importlib.util.find_spec(module)
        if spec is None:
            raise UserError(f"plugin module '{module}' cannot be imported; put it beside the plugin's file, or install it.")
        folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
        files = [(str(file.relative_to(folder)), file) for folder in folders for file in folder.rglob("*.py")]
        for name, file in sorted(files) or [("", Path(spec.origin or ""))]:
            digest.update(f"{module} {name}\n".encode() + file.read_bytes())
    return digest.hexdigest()


def _is_path(name: str) -> bool:
    return name.endswith(".py") or "/" in name or os.sep in name


def _path(name: str) -> Path:
    return Path(name).expanduser().resolve()


def _module_of_file(name: str) -> str:
    """The name under which the file is imported from now on: its own, which no other module may have."""
    path = _path(name)
    if not path.is_file() or path.suffix != ".py":
        raise UserError(f"plugin {name}: no such .py file; mend the path in `plugins`, it counts from the working directory.")
    if not path.stem.isidentifier():
        raise UserError(f"plugin {name}: '{path.stem}' is no module name; rename the file to letters, digits and '_'.")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
        importlib.invalidate_caches()
    try:
        spec = importlib.util.find_spec(path.stem)
    except ValueError:  # __main__ and the like
        spec = None
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise UserError(f"plugin {name}: there is another module '{path.stem}'; rename the file.")
    return path.stem


def _import(module: str, name: str) -> None:
    if module in _loaded:
        return
    _loading.append(module)
    try:
        importlib.import_module(module)
    except UserError as error:
        raise UserError(f"plugin {name}: {error}") from error
    except (Exception, SystemExit) as error:  # whatever the code of others raises
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"plugin {name}: there is no module '{module}'; install it, or give the path of a .py file."
            ) from None
        told = " ".join(str(error).split())
        raise UserError(
            f"plugin {name}: its import fails with {type(error).__name__} ({told}); mend it or remove it."
        ) from error
    finally:
        _loading.pop()
    _loaded.add(module)
