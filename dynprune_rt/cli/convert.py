"""Convert a torch model to a .dpr program. Needs torch.

MODEL is a network of the zoo (see --list), or a model of your own: package.module:factory or path/net.py:factory,
where the factory takes no arguments and returns a torch.nn.Module (a class will do). Modules are also found in the
current directory. Of several outputs the first is kept; from Python, convert(outputs=...) chooses.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from dynprune_rt.cli.arguments import fraction, shape
from dynprune_rt.errors import ConversionError, DynpruneError

ABOUT = "convert a torch model to a .dpr file"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="zoo name, package.module:factory or net.py:factory")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE.dpr", help="default: the model's name in this directory"
    )
    parser.add_argument(
        "--input-shape", type=shape, metavar="N,C,H,W", help="of the example input (needed for own models)"
    )
    parser.add_argument("--weights", type=Path, metavar="FILE", help="safetensors file to load into the model")
    parser.add_argument("--gate", help="zoo only: gate pattern (see --list)")
    parser.add_argument("--share", type=fraction, default=0.5, help="zoo only: live channels (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="zoo only: of random weights (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="list the zoo's networks and gates")


def run(args: argparse.Namespace) -> int:
    if args.list:
        return _list()
    if args.model is None:
        raise DynpruneError("which model? Give a zoo name or package.module:factory, or --list")
    output = args.output or Path(args.model.replace(":", ".").split(".")[-1] + ".dpr")
    if not output.parent.is_dir():  # rather now than after the conversion
        raise DynpruneError(f"cannot write {output}: there is no folder {output.parent}")
    from dynprune_rt.frontend.torch_version import require_torch

    torch = require_torch()
    import dynprune_rt
    from dynprune_rt import models

    if ":" in args.model:
        if args.gate is not None:
            raise DynpruneError("--gate is for networks of the zoo; a model of your own brings its gates along")
        if args.input_shape is None:
            raise DynpruneError("a model of your own needs --input-shape, for example --input-shape 1,3,224,224")
        module = _own_model(args.model)
        if args.weights is not None:
            _load_weights(module, args.weights)
        dims = args.input_shape
    else:
        zoo = models.entry(args.model)
        dims = args.input_shape or (1, *zoo.input_shape)
        module = models.create(
            args.model, args.gate, args.seed, share=args.share, weights=args.weights, input_size=dims[-1]
        )
    if len(dims) == 4 and dims[1] == 3:
        example = models.synthetic_images(dims[0], (dims[2], dims[3]), args.seed)
    else:
        example = torch.randn(dims, generator=torch.Generator().manual_seed(args.seed))
    program = dynprune_rt.convert(module.eval(), example)
    program.save(output)
    print(program)
    print(f"\nwrote {output} ({output.stat().st_size / 2**20:.1f} MiB)")
    return 0


def _list() -> int:
    from dynprune_rt.frontend.torch_version import require_torch

    require_torch()
    from dynprune_rt import models

    print("networks: " + ", ".join(models.available()))
    print("gates:")
    width = max(map(len, models.GATES))
    for name, style in models.GATES.items():
        print(f"  {name:<{width}}  {style.about}")
    return 0


def _own_model(reference: str) -> Any:
    """What ``package.module:factory`` or ``path/net.py:factory`` makes. Raises ConversionError with the cause."""
    import torch

    where, _, factory_name = reference.rpartition(":")
    file = Path(where).resolve() if where.endswith(".py") else None
    folder = str(file.parent) if file else os.getcwd()
    sys.path.insert(0, folder)
    try:
        factory: Any = _module_of(file) if file else importlib.import_module(where)
        for part in factory_name.split("."):
            factory = getattr(factory, part)
        model = factory if isinstance(factory, torch.nn.Module) else factory()
    except Exception as error:
        raise ConversionError(f"{reference}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(folder)
    if not isinstance(model, torch.nn.Module):
        raise ConversionError(f"{reference} returned {type(model).__name__}, not a torch.nn.Module")
    return model


def _module_of(file: Path) -> Any:
    """The module in a file, under a name that no installed module has."""
    spec = importlib.util.spec_from_file_location(f"user_model_{file.stem}", file)
    assert spec is not None and spec.loader is not None  # a name that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


def _load_weights(module: Any, path: Path) -> None:
    try:
        from safetensors.torch import load_file

        module.load_state_dict(load_file(str(path)))
    except Exception as error:
        raise ConversionError(f"cannot load {path} into the model: {error}") from None
