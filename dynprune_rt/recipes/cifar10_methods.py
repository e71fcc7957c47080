"""The methods on CIFAR-10: recipes, and the command that runs them and keeps a table of what came out.

    python -m dynprune_rt.recipes.cifar10_methods --list
    python -m dynprune_rt.recipes.cifar10_methods resnet20_di50 --data DIR --runs runs -o results.json

DIR holds CIFAR-10 and the pretrained weights (see `methods.load_cifar10`). A run that was interrupted goes on from its
last epoch. Every row of the JSON file comes from a finished run; a second run of a recipe replaces its row.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynprune_rt.cli.progress import ProgressBar
from dynprune_rt.errors import DynpruneError
from dynprune_rt.methods import Settings, load_cifar10
from dynprune_rt.methods.data import data_folder
from dynprune_rt.recipes.training_run import Place, Recipe, run

_R20: dict[str, Any] = {"arch": "cifar_resnet20", "weights": "cifar10_resnet20.safetensors"}
_R56: dict[str, Any] = {"arch": "cifar_resnet56", "weights": "cifar10_resnet56.safetensors"}

#: Recipes by name: architecture, method, and per cent of the MACs removed. Each distils from the dense network.
RECIPES: dict[str, Recipe] = {
    "resnet20_di50": Recipe(**_R20, method="di", target=0.5, settings=Settings(epochs=10)),
    "resnet20_di30": Recipe(**_R20, method="di", target=0.7, settings=Settings(epochs=14)),
    "resnet20_fbs50": Recipe(**_R20, method="fbs", target=0.5, settings=Settings(epochs=18)),
    "resnet20_fbs50_threshold": Recipe(
        **_R20, method="fbs", target=0.5, options={"rule": "threshold"}, settings=Settings(epochs=18)
    ),
    # Static first, per image then: what DI left, and skipping on top of it.
    "resnet20_di50_is": Recipe(
        **_R20, method="is", target=0.93, base="resnet20_di50", settings=Settings(epochs=2, learning_rate=0.01)
    ),
    "resnet20_di50_is_untrained": Recipe(
        **_R20, method="is", target=0.95, base="resnet20_di50", settings=Settings(epochs=0)
    ),
    "resnet20_is10_untrained": Recipe(**_R20, method="is", target=0.9, settings=Settings(epochs=0)),
    "resnet56_is13_untrained": Recipe(
        **_R56, method="is", target=0.87, options={"layer_share": 0.5}, settings=Settings(epochs=0)
    ),
    # Networks of an earlier study, measured as they are.
    "resnet20_fbs50_18_epochs": Recipe(
        **_R20,
        method="fbs",
        target=0.502,
        settings=Settings(epochs=0),
        start="trained/cifar10_resnet20_fbs_18ep.safetensors",
        start_epochs=18,
    ),
    "resnet20_manidp50_5_epochs": Recipe(
        **_R20,
        method="manidp",
        target=0.5,
        options={"thresholds": "channel_means"},
        settings=Settings(epochs=0),
        start="trained/cifar10_resnet20_manidp_5ep.safetensors",
        start_epochs=5,
    ),
    "resnet20_fbs50_continued": Recipe(
        **_R20,
        method="fbs",
        target=0.502,
        options={"end": 0.0},
        settings=Settings(epochs=4, learning_rate=0.02),
        start="trained/cifar10_resnet20_fbs_18ep.safetensors",
        start_epochs=18,
    ),
    # The same short run from the dense network with and without what keeps masks from freezing.
    "resnet20_fbs50_short": Recipe(**_R20, method="fbs", target=0.5, settings=Settings(epochs=8)),
    "resnet20_fbs50_short_centred": Recipe(
        **_R20, method="fbs", target=0.5, options={"centre": 1.0, "rule": "threshold"}, settings=Settings(epochs=8)
    ),
    "resnet20_fbs50_short_balanced": Recipe(
        **_R20, method="fbs", target=0.5, options={"balance": 5.0}, settings=Settings(epochs=8)
    ),
    "resnet20_manidp50": Recipe(**_R20, method="manidp", target=0.5, settings=Settings(epochs=18)),
    "resnet20_manidp50_published_thresholds": Recipe(
        **_R20, method="manidp", target=0.5, options={"thresholds": "channel_means"}, settings=Settings(epochs=18)
    ),
    "resnet20_cwp50": Recipe(**_R20, method="cwp", target=0.5, settings=Settings(epochs=14)),
    "resnet20_is15": Recipe(**_R20, method="is", target=0.83, settings=Settings(epochs=4, learning_rate=0.02)),
    # As many epochs as two CPU cores allow: what ManiDP and the better static method give after equally short training.
    "resnet56_di50_short": Recipe(**_R56, method="di", target=0.5, settings=Settings(epochs=8)),
    "resnet56_manidp50_short": Recipe(**_R56, method="manidp", target=0.5, settings=Settings(epochs=8)),
    "resnet56_manidp55": Recipe(**_R56, method="manidp", target=0.45, settings=Settings(epochs=60)),
    "resnet56_di55": Recipe(**_R56, method="di", target=0.45, settings=Settings(epochs=60)),
}


def equal_macs(recipe: Recipe, macs_left: float) -> Recipe:
    """The static network to hold against a dynamic one: DI to the same MACs, trained as long from the same weights."""
    base = RECIPES[recipe.base] if recipe.base is not None else None
    epochs = recipe.settings.epochs + recipe.start_epochs + (base.settings.epochs if base is not None else 0)
    settings = replace(recipe.settings, epochs=epochs, learning_rate=Settings.learning_rate)
    return Recipe(recipe.arch, "di", macs_left, recipe.weights, settings=settings, batch=recipe.batch)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="RECIPE", help="recipes to run, in this order")
    parser.add_argument("--list", action="store_true", help="list the recipes")
    parser.add_argument("--data", type=Path, help="folder with data and weights (default: $DYNPRUNE_RT_DATA)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of checkpoints (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--static", action="store_true", help="also train the static network of equal MACs")
    parser.add_argument("-o", "--output", type=Path, help="JSON file to keep the rows in")
    args = parser.parse_args()
    if args.list:
        for name, recipe in RECIPES.items():
            print(f"{name:<40} {recipe.arch} {recipe.method} to {recipe.target}, {recipe.settings.epochs} epochs")
        return 0
    try:
        unknown = [name for name in args.names if name not in RECIPES]
        if unknown or not args.names:
            raise DynpruneError(f"no recipe {', '.join(unknown) or 'given'}; --list shows them")
        folder = data_folder(args.data)
        data = load_cifar10(folder)
        pending = list(args.names)
        recipes = dict(RECIPES)
        while pending:
            name = pending.pop(0)
            recipe = _seeded(recipes[name], args.seed)
            base = _seeded(recipes[recipe.base], args.seed) if recipe.base is not None else None
            key = _key(name, args.seed)
            place = Place(
                data=data,
                weights=folder,
                run=args.runs / key,
                base=args.runs / _key(recipe.base, args.seed) if recipe.base is not None else None,
                teacher=args.runs / "teacher",
            )
            with ProgressBar(key) as bar:
                outcome = run(recipe, place, base, lambda done, total, text: bar(done, total, text))
            (args.runs / key).mkdir(parents=True, exist_ok=True)
            outcome.program.save(args.runs / key / "model.dpr")
            command = f"python -m dynprune_rt.recipes.cifar10_methods {name} --seed {args.seed}"
            _keep(args.output, key, {**outcome.row, "command": command, "finished": time.strftime("%Y-%m-%d")})
            if args.static and recipe.method not in ("di", "cwp"):
                recipes[f"{name}_static"] = equal_macs(recipe, outcome.row["activity"]["macs_left"])
                pending.insert(0, f"{name}_static")
    except DynpruneError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, settings=replace(recipe.settings, seed=seed))


def _key(name: str, seed: int) -> str:
    return name if seed == 0 else f"{name}_seed{seed}"


def _keep(path: Path | None, key: str, row: dict[str, Any]) -> None:
    print(
        f"{key}: test {row['test_accuracy']:.2%}, MACs left {row['activity']['macs_left']:.1%}, "
        f"static part of the cut {row['activity']['static_share']:.0%}"
    )
    if path is None:
        return
    rows = json.loads(path.read_text()) if path.is_file() else {}
    rows[key] = row
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(rows, indent=1) + "\n")
    os.replace(scratch, path)


if __name__ == "__main__":
    sys.exit(main())
