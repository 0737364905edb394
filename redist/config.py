"""Settings, in Dask's way: defaults in ``redist.yaml``, files of yaml, environment, and `set`, all under ``redist:``.

Dask's configuration is the one that counts, so `dask.config.set({"redist.client.timeout": ...})` works as well. But to
import it takes longer than to start a client: while nobody else has imported it, and no file says anything of redist, the
defaults and the environment are all there is, and they are read here.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import site
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from redist.imported import imported

__all__ = ["Setting", "as_environment", "get", "refresh", "set", "settings"]

_NAME = "redist"
_YAML = os.path.join(os.path.dirname(__file__), "redist.yaml")
_ABSENT: Any = object()
_lock = threading.RLock()
_known: dict[str, Setting] = {}
_light: dict[str, Any] | None = None
_needs_dask: bool | None = None
#: Dask's configuration once ours is part of it
_joined: Any = None


class Setting(NamedTuple):
    """One setting: its default, and what it is."""

    default: Any
    text: str


def settings() -> Mapping[str, Setting]:
    """Return all settings by name, as ``client.timeout``, in the order of ``redist.yaml``."""
    if not _known:
        with _lock, open(_YAML) as file:
            _known.update(_parse(file.read()))
    return _known


def get(key: str, default: Any = _ABSENT) -> Any:
    """Return the value of a setting.

    Parameters
    ----------
    key : str
        Its name without ``redist.``, such as ``client.timeout``; ``-`` and ``_`` are the same.
    default : object, optional
        What to return if there is no such setting.

    Raises
    ------
    KeyError
        If there is no such setting and no default; it names the nearest that there is.
    """
    key = _canonical(key)
    dask = _dask()
    found = _own().get(key, _ABSENT) if dask is None else dask.get(f"{_NAME}.{key}", default=_ABSENT)
    if found is _ABSENT and key in settings():
        # The end of a `dask.config.set` that began before ours was part of it took all of it away.
        with _lock:
            _join(dask, again=True)
        found = dask.get(f"{_NAME}.{key}", default=_ABSENT)
    if found is not _ABSENT:
        return found
    if default is not _ABSENT:
        return default
    raise KeyError(f"there is no setting {key!r}{_hint(key)}")


def set(arg: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:  # noqa: A001 - Dask's word
    """Change settings, for good or as a context manager: ``set({"client.timeout": "1 m"})``, ``set(client__timeout=60)``."""
    given = {**(arg or {}), **{name.replace("__", "."): value for name, value in kwargs.items()}}
    given = {_canonical(name): value for name, value in given.items()}
    for name, value in given.items():
        _warn_if_unknown(name, 2)
        if not isinstance(value, Mapping) and (within := _within(name)):
            raise ValueError(
                f"{name!r} is a section, and {value!r:.80} no mapping: it has {', '.join(within)}"
            )
    import dask.config

    _dask()
    return dask.config.set({f"{_NAME}.{name}": value for name, value in given.items()})


def refresh() -> None:
    """Read files and environment again; what was `set` is forgotten, for all of Dask."""
    global _light, _needs_dask, _joined
    with _lock:
        _light = _needs_dask = None
        if _joined is not None:
            _joined.refresh()
            _joined = None


def as_environment() -> dict[str, str]:
    """Return environment variables under which another process has the settings of this one, as far as they are others."""
    changed = {name: get(name) for name, setting in settings().items()}
    return {
        _variable(name): repr(value)
        for name, value in changed.items()
        if value != settings()[name].default and not isinstance(value, dict)
    }


# --- names ----------------------------------------------------------------------------------------------------------


def _canonical(key: str) -> str:
    return key.replace("_", "-").removeprefix(f"{_NAME}.")


def _variable(name: str) -> str:
    return f"{_NAME}_{name}".upper().replace("-", "_").replace(".", "__")


def _hint(name: str) -> str:
    import difflib

    near = difflib.get_close_matches(name, settings(), 1)
    return f"; did you mean {near[0]!r}?" if near else ", see docs/configuration.md"


def _within(section: str) -> list[str]:
    return [known for known in settings() if known.startswith(f"{section}.")]


def _warn_if_unknown(name: str, stacklevel: int) -> None:
    if name not in settings() and not _within(name):
        warnings.warn(f"redist has no setting {name!r}{_hint(name)}", stacklevel=stacklevel + 1)


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        name = f"{prefix}{_canonical(str(key))}"
        if isinstance(value, dict):
            yield from _flat(value, f"{name}.")
        else:
            yield name, value


# --- sources --------------------------------------------------------------------------------------------------------


def _parse(text: str) -> dict[str, Setting]:
    """Read ``redist.yaml``, which is plain: sections, scalars, and comments above what they are of."""
    found: dict[str, Setting] = {}
    path: list[str] = []
    comment: list[str] = []
    for line in text.splitlines():
        item = line.strip()
        if item.startswith("#"):
            comment.append(item[1:].strip())
            continue
        key, _, value = (part.strip() for part in item.partition(":"))
        if key:
            path[(len(line) - len(line.lstrip())) // 2 :] = [key]
            if value:
                found[".".join(path[1:])] = Setting(_scalar(value), " ".join(comment))
        comment.clear()
    return found


def _scalar(text: str) -> Any:
    if text in ("null", "true", "false"):
        return {"null": None, "true": True, "false": False}[text]
    import ast

    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return text


def _environment() -> dict[str, Any]:
    """Return what ``REDIST_SECTION__NAME`` and, without a section, ``REDIST_NAME`` say. Others are no settings."""
    found = {}
    for variable, text in os.environ.items():
        if variable.startswith("REDIST_"):
            name = _canonical(variable.removeprefix("REDIST_").lower().replace("__", "."))
            if "." in name or name in settings():
                _warn_if_unknown(name, 5)
                found[name] = _scalar(text)
    return found


def _own() -> dict[str, Any]:
    """Return the settings of a process that has no use for Dask's configuration."""
    global _light
    if _light is None:
        with _lock:
            _light = {name: setting.default for name, setting in settings().items()} | _environment()
    return _light


def _directories() -> list[str]:
    """Return where Dask looks for files."""
    return [
        os.environ.get("DASK_ROOT_CONFIG", "/etc/dask"),
        *(os.path.join(prefix, "etc", "dask") for prefix in (sys.prefix, *site.PREFIXES)),
        os.path.join(os.path.expanduser("~"), ".config", "dask"),
        os.environ.get("DASK_CONFIG", ""),
    ]


def _files_speak_of_us() -> bool:
    if os.environ.get("REDIST_CONFIG") or any(name.startswith("DASK_REDIST__") for name in os.environ):
        return True
    for path in filter(None, _directories()):
        with contextlib.suppress(OSError):
            files = [os.path.join(path, name) for name in os.listdir(path)] if os.path.isdir(path) else [path]
            for name in files:
                if name.endswith((".yaml", ".yml", ".json")):
                    with open(name, "rb") as file:
                        if b"redist" in file.read():
                            return True
    return False


# --- Dask's ---------------------------------------------------------------------------------------------------------


def _dask() -> Any:
    """Return Dask's configuration with ours in it, None while nobody needs it."""
    global _needs_dask
    module = imported("dask.config")
    if module is None:
        if _needs_dask is None:
            _needs_dask = _files_speak_of_us()
        if not _needs_dask:
            return None
        module = importlib.import_module("dask.config")
    if _joined is not module:
        with _lock:
            _join(module)
    return module


def _join(dask: Any, *, again: bool = False) -> None:
    """Make our settings part of Dask's: its files, then REDIST_CONFIG, then the environment; what was set counts most."""
    global _joined
    if _joined is dask and not again:
        return
    present = dict(_flat(dask.config.get(_NAME) or {}))
    said = dict(_flat(dask.collect().get(_NAME) or {})) if present else {}
    ours: dict[str, Any] = {}
    if path := os.environ.get("REDIST_CONFIG"):
        for tree in dask.collect_yaml([path]):
            ours.update(_flat(tree.get(_NAME) or {}))
    ours.update(_environment())
    for name, value in ours.items():
        if name not in present or (name in said and present[name] == said[name]):
            dask.update(dask.config, _tree(name, value), priority="new")
    defaults: dict[str, Any] = {}
    for name, setting in settings().items():
        dask.update(defaults, _tree(name, setting.default))
    dask.update(dask.config, defaults, priority="old")
    if not any(_NAME in tree for tree in dask.defaults):
        dask.defaults.append(defaults)  # for its `refresh`
    for name, _ in _flat(dask.config[_NAME]):
        _warn_if_unknown(name, 5)
    _joined = dask


def _tree(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(f"{_NAME}.{name}".split(".")):
        value = {part: value}
    return value  # type: ignore[no-any-return]
