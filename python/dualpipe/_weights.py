"""The weights of a model that was split on the meta device: each rank has those of its own stages alone."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Union

import torch
from torch import Tensor, nn

from ._missing import require
from ._sim import InputError

Weights = Union[str, os.PathLike[str], Mapping[str, Union[str, os.PathLike[str]]]]

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class WeightFiles:
    """Where the tensors of a model are, by the model's names. `weights`: a safetensors file, an index over several, or
    the folder that has them; or a dictionary of these, by the module whose names they have."""

    def __init__(self, weights: Weights):
        require("safetensors", (0, 4), "transformers", "weights=")
        self._places: dict[str, tuple[Path, str]] = {}
        of_modules = weights if isinstance(weights, Mapping) else {"": weights}
        for module, path in of_modules.items():
            prefix = f"{module}." if module else ""
            for name, file in _files(Path(path)).items():
                self._places[prefix + name] = file, name
        self.text = ", ".join(os.fspath(path) for path in of_modules.values())

    def name_of(self, names: Sequence[str]) -> str | None:
        """Which of the names of a tensor, of which tied weights have several, the files have."""
        return next((each for each in names if each in self._places), None)

    def read(self, name: str, into: Tensor) -> None:
        """The file is opened for each tensor: as long as it is, what has been read of it stays in memory."""
        from safetensors import SafetensorError, safe_open

        file, key = self._places[name]
        try:
            with safe_open(file, "pt") as opened:
                tensor = opened.get_tensor(key)
                if tensor.shape != into.shape:
                    raise InputError(
                        f"{file}: {key} has shape {list(tensor.shape)}, and the model's {name} {list(into.shape)}"
                    )
                into.copy_(tensor)
        except (OSError, SafetensorError) as error:
            raise InputError(f"{file}: {key} cannot be read: {error}") from error


def _files(path: Path) -> dict[str, Path]:
    """By name of a tensor, the file that has it."""
    from safetensors import SafetensorError, safe_open

    if path.is_dir():
        found = [path / name for name in (_INDEX, _FILE) if (path / name).exists()]
        if not found:
            raise InputError(f"{path} has neither {_FILE} nor {_INDEX}")
        path = found[0]
    try:
        if path.suffix == ".json":
            index = json.loads(path.read_text())
            return {name: path.parent / file for name, file in index["weight_map"].items()}
        with safe_open(path, "pt") as opened:
            return {name: path for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is no safetensors file that can be read: {error}") from error
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f'{path} is no index of safetensors files: it has no "weight_map" of tensors') from error


def fill(model: nn.Module, stages: Sequence[nn.Module], weights: Weights | None, device: torch.device) -> bool:
    """Moves those parameters and buffers of the stages that are on the meta device to `device`, with what the files
    have; what these do not have is made by the modules' own `reset_parameters()`, or transformers' `_init_weights()`.
    Returns whether any parameter was made so.

    Raises InputError for files that cannot be read, and for tensors that have no value then.
    """
    own = _own(model, stages)
    files = None if weights is None or not own else WeightFiles(weights)
    names = _names(model)
    if files is not None and all(files.name_of(each) is None for each in names.values()):
        raise InputError(
            f"{files.text} has no tensor of {type(model).__name__}, one of which is {next(iter(names.values()))[0]}; "
            'where its names are those of a module in it, give weights={"the.module": path}'
        )
    sources = {each: None if files is None else files.name_of(names[id(own[each])]) for each in own}
    made = {name for name, source in sources.items() if source is None}
    for tensor in own.values():
        _settle(tensor, device)
    with torch.no_grad():
        _initialize(model, made, own, files, device)
        for name, source in sources.items():
            if source is not None:
                files.read(source, own[name])
    return any(isinstance(own[name], nn.Parameter) for name in made)


def move(model: nn.Module, device: torch.device) -> None:
    """As model.to(device), of what is not on the meta device."""
    model._apply(lambda tensor: tensor if tensor.is_meta else tensor.to(device))


def _names(model: nn.Module) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for name, tensor in _tensors(model):
        found.setdefault(id(tensor), []).append(name)
    return found


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def _own(model: nn.Module, stages: Sequence[nn.Module]) -> dict[str, Tensor]:
    """By their first name, what the stages hold that has no value yet."""
    held = {id(tensor) for stage in stages for _, tensor in _tensors(stage)}
    found: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in _tensors(model):
        if id(tensor) in held and tensor.is_meta:
            found.setdefault(id(tensor), (name, tensor))
    return dict(found.values())


def _settle(tensor: Tensor, device: torch.device) -> None:
    """The same object has memory now. What nobody fills is found by its value."""
    made = torch.empty_like(tensor, device=device)
    if made.is_floating_point():
        made.fill_(torch.nan)
    if isinstance(tensor, nn.Parameter):
        made = nn.Parameter(made, tensor.requires_grad)
    torch.utils.swap_tensors(tensor, made)


def _initialize(
    model: nn.Module, made: set[str], own: dict[str, Tensor], files: WeightFiles | None, device: torch.device
) -> None:
    """Each module by random numbers of its own: they are the same on whichever rank it is."""
    for path in dict.fromkeys(name.rpartition(".")[0] for name in sorted(made)):
        module = model.get_submodule(path)
        initialize = _initializer(model, path)
        with torch.random.fork_rng([device.index or 0] if device.type == "cuda" else []):
            torch.manual_seed(torch.initial_seed() ^ zlib.crc32(path.encode()))
            if initialize is not None:
                initialize(module)
    for name in sorted(made):
        if own[name].is_floating_point() and own[name].isnan().any():
            where = "no file is given" if files is None else f"{files.text} does not have it"
            kind = type(model.get_submodule(name.rpartition(".")[0])).__name__
            raise InputError(
                f"{name} has no value: {where}, and {kind} does not make it in reset_parameters() or _init_weights(); "
                "give weights= that have it, or make the model with it (accelerate.init_empty_weights() keeps buffers)"
            )


def _initializer(model: nn.Module, path: str) -> Any:
    """transformers' models have one function for all modules in them; a module of a model's own may say it itself."""
    ancestors = [path]
    while ancestors[-1]:
        ancestors.append(ancestors[-1].rpartition(".")[0])
    for each in ancestors:
        found = getattr(model.get_submodule(each), "_init_weights", None)
        if callable(found):
            return found
    module = model.get_submodule(path)
    if callable(getattr(module, "reset_parameters", None)):
        return lambda m: m.reset_parameters()
    return None
