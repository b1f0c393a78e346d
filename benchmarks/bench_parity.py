"""Agreement of the fast execution paths with float32, on every test image of real data sets.

Each model diagnoses its own test split twice: as it runs on this machine, and with every trunk and
tail in float32 torch. Images whose class differs are listed with their margins. Result:
results/parity.json.
"""

import argparse
import dataclasses
from pathlib import Path

import harness
import numpy as np

from core.assessment.predict_split import read_split
from core.config import Settings
from core.data.datasets import read_dataset
from core.models.bundle import ModelBundle
from core.models.ensemble import Ensemble, Model
from core.models.registry import load_bundle
from core.network.build import build_embedder


def measure_parity(directory: Path, names: list[str], data_root: Path) -> dict[str, object]:
    """Compare with float32 on every test image of the folders the models were trained on."""
    found: dict[str, object] = {}
    for name in names:
        model = load_bundle(directory, name, settings=Settings.from_env())
        root = Path(model.lead.config.data_root)
        root = root if root.exists() else data_root / root.name
        dataset = read_dataset(root, seed=model.lead.config.run.train.seed)
        exact = replace_embedders(model)
        ours = read_split(model, dataset, split="test")
        theirs = read_split(exact, dataset, split="test")
        differing = [
            {
                "file": ours.keys[i],
                "p_ours": round(float(ours.p_disease[i]), 5),
                "p_float32": round(float(theirs.p_disease[i]), 5),
                "margin": round(abs(float(theirs.p_disease[i]) - 0.5), 5),
            }
            for i in np.flatnonzero((ours.p_disease > 0.5) != (theirs.p_disease > 0.5))
        ]
        cosines = [
            float((a * b).sum(1).min())
            for a, b in zip(ours.embeddings, theirs.embeddings, strict=True)
        ]
        found[root.name] = {
            "model": name,
            "n_test": len(ours.keys),
            "n_differing": len(differing),
            "differing": differing,
            "smallest_embedding_cosine": round(min(cosines), 6),
            "largest_p_difference": round(
                float(np.abs(ours.p_disease - theirs.p_disease).max()), 6
            ),
        }
    return found


def replace_embedders(model: Model) -> Model:
    """Return the model with every trunk and tail run in float32 torch."""

    def exact(bundle: ModelBundle) -> ModelBundle:
        run = bundle.config.run.with_overrides(["embedder.precision=float32"])
        embedder = build_embedder(run, Settings.from_env())
        embedder.net.load_state_dict(bundle.embedder.net.state_dict())
        embedder.net.requires_grad_(False).eval()
        plain_trunks = tuple(dataclasses.replace(b, compiled=None) for b in embedder.backbones)
        return dataclasses.replace(
            bundle, embedder=dataclasses.replace(embedder, backbones=plain_trunks)
        )

    if not isinstance(model, Ensemble):
        return exact(model)
    members = tuple(dataclasses.replace(m, bundle=exact(m.bundle)) for m in model.members)
    return dataclasses.replace(model, members=members)


def main() -> None:
    """Compare and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoints", type=Path, default=Settings.from_env().checkpoints_dir)
    parser.add_argument("--models", nargs="*", default=[])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    options = parser.parse_args()
    if not options.models:
        print("bench_parity: name models of real data with --models; nothing done")
        return
    found = measure_parity(options.checkpoints, options.models, options.data)
    harness.write_result("parity", {"data_sets": found})
    print(found)


if __name__ == "__main__":
    main()
