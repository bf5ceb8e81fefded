"""Profiles of clusters: the options of a launch in a TOML file, shipped or written by the user."""

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

from hpcphotoz.errors import BadInput, nearest
from hpcphotoz.launch.request.further_options import parse_option
from hpcphotoz.launch.request.plan import LaunchPlan

_ABOUT = ("description", "unverified", "read")
_ENVIRONMENT = "environment"
# Fields of the plan by the key that sets them; the keys are the options of the command line.
_OF_LAUNCH = ("comment", "dependency")  # fields of a plan that no profile sets
_FIELDS = {
    field.name.replace("_", "-"): field for field in fields(LaunchPlan) if field.name not in _OF_LAUNCH
}
_KEYS = (*_ABOUT, *_FIELDS)


@dataclass(frozen=True)
class Profile:
    """A profile of a cluster.

    Args:
        name: as it is asked for.
        file: where it was read.
        options: fields of the plan.
        description: one line.
        unverified: what of it nobody has tried, or could not be read.
        read: addresses of the pages that it was written from.
    """

    name: str
    file: Path
    options: Mapping[str, Any]
    description: str = ""
    unverified: tuple[str, ...] = ()
    read: tuple[str, ...] = ()

    @property
    def comment(self) -> str:
        """One line for the batch script: the name, and what is unverified."""
        doubts = f"; unverified: {'; '.join(self.unverified)}" if self.unverified else ""
        return f"profile {self.name}{doubts}"


def user_folder() -> Path:
    """Where a user's own profiles are: `hpcphotoz/profiles` in XDG_CONFIG_HOME, or in ~/.config."""
    base = os.environ.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".config") / "hpcphotoz" / "profiles"


def profile_files() -> dict[str, Path]:
    """The file of every profile by name, sorted; a user's own replaces a shipped one of the same name."""
    shipped = Path(str(resources.files("hpcphotoz"))) / "launch" / "profiles"
    found = {path.stem: path for folder in (shipped, user_folder()) for path in folder.glob("*.toml")}
    return dict(sorted(found.items()))


def find_profile(name: str) -> Path:
    """The file of a profile, by its name or path.

    Raises:
        BadInput: there is none.
    """
    if "/" in name or name.endswith(".toml"):
        if not Path(name).is_file():
            raise BadInput(f"{name}: no such file; a shipped profile or one of yours is given by its name")
        return Path(name)
    known = profile_files()
    if name not in known:
        hint = f"{nearest(name, known)}; there are {', '.join(known)}, and your own in {user_folder()}"
        raise BadInput(f"--profile {name}: no such profile{hint}")
    return known[name]


def load_profile(name: str) -> Profile:
    """Read a profile by its name or path.

    Raises:
        BadInput: there is none, it is no TOML, or it has an unknown key or a value of another type.
    """
    file = find_profile(name)
    try:
        tree = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{file}: cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput(f"{file}: cannot be read as TOML: {error}") from None
    for key in tree:
        if key not in _KEYS:
            hint = f"{nearest(key, _KEYS)}; valid: {', '.join(_KEYS)}"
            raise BadInput(f"{file}: {key}: unknown key{hint}")
    about = {key: _value(file, key, tree[key], key != "description") for key in _ABOUT if key in tree}
    if not isinstance(tree.get("description", ""), str):
        raise BadInput(f"{file}: description = {tree['description']!r}: must be a text")
    options = {_FIELDS[key].name: _option(file, key, tree[key]) for key in tree if key in _FIELDS}
    profile = Profile(Path(name).stem if file == Path(name) else name, file, options, **about)
    try:
        LaunchPlan(**{**options, "comment": profile.comment})
    except BadInput as error:
        raise BadInput(f"{file}: {error}") from None
    return profile


def plan_of(given: Mapping[str, Any], profile: Profile | None = None) -> LaunchPlan:
    """The plan of the options `given`, on top of a profile's.

    A given option replaces the profile's. Of `setup`, `srun` and `extra` the profile's come first; a given
    one of the same key replaces it.

    Args:
        given: fields of the plan; None where an option was not given.
        profile: the options that hold where nothing is given.

    Raises:
        BadInput: a value that cannot be used.
    """
    options = {} if profile is None else dict(profile.options)
    for name, value in given.items():
        if value is None:
            continue
        if isinstance(value, list | tuple):
            earlier = options.get(name, ())
            if name != "setup":
                keys = {parse_option(entry)[0] for entry in value}
                earlier = [entry for entry in earlier if parse_option(entry)[0] not in keys]
            value = (*earlier, *value)
        options[name] = value
    if profile is not None:
        options["comment"] = profile.comment
    for one, other in (("conda", "container"), ("container", "conda")):
        if given.get(one) and not given.get(other):
            options.pop(other, None)
    return LaunchPlan(**options)


def _option(file: Path, key: str, value: Any) -> Any:
    if key == _ENVIRONMENT:
        if not isinstance(value, dict) or not all(_is_scalar(one) for one in value.values()):
            raise BadInput(f'{file}: {key}: write a table, e.g. [environment] and NAME = "value" below it')
        return tuple((name, str(one)) for name, one in value.items())
    kind = type(_FIELDS[key].default)
    if kind is int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise BadInput(f"{file}: {key} = {value!r}: must be a whole number")
        return value
    return _value(file, key, value, kind is tuple)


def _value(file: Path, key: str, value: Any, is_list: bool) -> Any:
    if is_list:
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise BadInput(f'{file}: {key} = {value!r}: must be a list of texts, e.g. ["..."]')
        return tuple(value)
    if not _is_scalar(value):
        raise BadInput(f"{file}: {key} = {value!r}: must be a text or a whole number")
    return str(value)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)
