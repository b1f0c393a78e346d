"""The same diagnosis as a good engineer would write it with the libraries only, for comparison.

timm models in float32 in their own layout, torchvision for the views, scikit-learn for the
neighbours, pytorch-grad-cam for the heatmaps, one model after the other. It reads the parameters,
gallery and calibration of our bundles, so that both sides must give the same answer, and uses our
heatmap target, so that they must give the same maps.
"""

import copy
import io
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from pytorch_grad_cam import GradCAM
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as F  # noqa: N812 - torchvision's own idiom

from core.config import Settings
from core.explanations.grad_cam import compute_vote_log_odds
from core.models.bundle import Member
from core.network.backbone import _CUTS, Tail
from core.network.weight_sources import load_pretrained


class VoteNet(nn.Module):
    """Views (4, 3, S, S) -> log-odds of the vote (1, 2), with gradients through one backbone."""

    def __init__(self, model: "PlainModel", index: int, features: list[Tensor]) -> None:
        super().__init__()
        self.backbone = model.backbones[index]
        self.model, self.index, self.features = [model], index, features
        self.neighbours: list[list[Tensor]] = []

    def forward(self, views: Tensor) -> Tensor:
        features = [*self.features]
        features[self.index] = self.backbone(views)
        parts = self.model[0].embed(torch.cat(features, dim=1))
        return compute_vote_log_odds(parts, self.neighbours)


class First:
    """pytorch-grad-cam's target: one class's log-odds."""

    def __init__(self, index: int) -> None:
        self.index = index

    def __call__(self, output: Tensor) -> Tensor:
        return output[self.index]


@dataclass
class Answer:
    """The outputs that are compared between both sides."""

    p_disease: float
    rows: list[list[int]]  # per member and part: nearest gallery rows
    maps: list[list[np.ndarray]]  # per member and backbone: mean over the views


class PlainModel:
    """One member of the ensemble: whole timm backbones, adapters, gallery."""

    def __init__(self, member: Member) -> None:
        """Copy a member's parameters; as after fine-tuning, only its tails and adapters have
        gradients (timm's own default, gradients everywhere, is slower and takes more memory)."""
        bundle = member.bundle
        run = bundle.config.run
        self.weight, self.galleries = member.weight, bundle.gallery.parts
        self.calibration, self.k = bundle.contents.calibration, bundle.n_shown
        self.disease = bundle.config.disease_index
        self.size = run.preprocess.input_size
        self.backbones, self.layers, self.means = [], [], []
        for name, tail, ours in zip(
            run.embedder.backbones,
            bundle.embedder.net.tails,
            bundle.embedder.backbones,
            strict=True,
        ):
            model = load_whole(name, self.size, random_weights=run.embedder.random_weights)
            trained = fill_tail(model, tail, tail_depth=run.embedder.tail_depth)
            model.requires_grad_(False)
            for part in trained:
                part.requires_grad_(True)
            self.backbones.append(model.eval())
            self.layers.append(find_layer(model))
            self.means.append((list(ours.mean), list(ours.std)))
        self.adapters = [copy.deepcopy(a).eval() for a in bundle.embedder.net.adapters]
        self.indexes = [
            NearestNeighbors(n_neighbors=self.k, algorithm="brute").fit(p.embeddings)
            for p in self.galleries
        ]

    def embed(self, features: Tensor) -> list[Tensor]:
        """Embed (4, F) features: per adapter the (1, D) mean over the views, of unit length."""
        normalise = nn.functional.normalize
        views = [normalise(adapter(features), dim=1) for adapter in self.adapters]
        return [normalise(v.mean(0, keepdim=True), dim=1) for v in views]

    def diagnose(self, views: Tensor, *, with_maps: bool) -> tuple[float, list, list]:
        """Compute probability of disease, nearest rows, heatmaps of the predicted class."""
        inputs = [F.normalize(views, mean, std) for mean, std in self.means]
        with torch.no_grad():
            features = [b(x) for b, x in zip(self.backbones, inputs, strict=True)]
            parts = self.embed(torch.cat(features, dim=1))
        votes, nearest = [], []
        for part, index, gallery in zip(parts, self.indexes, self.galleries, strict=True):
            distances, rows = index.kneighbors(part.numpy())
            weights = 1.0 / np.maximum(distances[0], 1e-12)
            is_disease = gallery.labels[rows[0]] == self.disease
            votes.append(weights[is_disease].sum() / weights.sum())
            nearest.append(rows[0].tolist())
        score = np.array([np.mean(votes)])
        p_disease = float(self.calibration.apply(score)[0])
        maps = []
        if with_maps:
            target = self.disease if p_disease > 0.5 else 1 - self.disease
            neighbours = self.find_by_class(parts)
            for index, layer in enumerate(self.layers):
                net = VoteNet(self, index, features)
                net.neighbours = neighbours
                is_vit = hasattr(self.backbones[index], "patch_embed") and not isinstance(
                    layer, nn.Sequential
                )
                cam = GradCAM(net, [layer], reshape_transform=to_map if is_vit else None)
                maps.append(upright(cam(inputs[index], [First(target)])).mean(0))
                cam.activations_and_grads.release()
                net.zero_grad()
        return p_disease, nearest, maps

    def find_by_class(self, parts: list[Tensor]) -> list[list[Tensor]]:
        """Find the nearest gallery embeddings per adapter and class, for the heatmap target."""
        found = []
        for part, gallery in zip(parts, self.galleries, strict=True):
            by_class = []
            for label in range(2):
                rows = gallery.embeddings[gallery.labels == label]
                index = NearestNeighbors(n_neighbors=min(self.k, len(rows)), algorithm="brute").fit(
                    rows
                )
                by_class.append(torch.from_numpy(rows[index.kneighbors(part.numpy())[1][0]]))
            found.append(by_class)
        return found


def diagnose(models: list[PlainModel], data: bytes, *, with_maps: bool = True) -> Answer:
    """Decode, build four views, run one model after the other, take the weighted mean."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    tensor = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    size = models[0].size
    plain = F.resize(tensor, [size, size], antialias=True).float() / 255.0
    views = torch.stack([plain, plain.flip(-1), plain.flip(-2), torch.rot90(plain, 1, (-2, -1))])
    answers = [model.diagnose(views, with_maps=with_maps) for model in models]
    weights = [model.weight for model in models]
    return Answer(
        float(np.average([a[0] for a in answers], weights=weights)),
        [rows for a in answers for rows in a[1]],
        [a[2] for a in answers],
    )


def load_whole(name: str, size: int, *, random_weights: bool) -> nn.Module:
    """Load the uncut timm model with the same weights as our trunk."""
    settings = Settings.from_env()
    model, _ = load_pretrained(
        name, input_size=size, weights_dir=settings.weights_dir, random_weights=random_weights
    )
    return model


def fill_tail(model: nn.Module, tail: Tail, *, tail_depth: int) -> list[nn.Module]:
    """Copy a trained tail into the whole model; return the modules that were trained."""
    stages_name, norm_names, per_depth = _CUTS[type(model).__name__]
    stages = list(getattr(model, stages_name).children())[-tail_depth * per_depth :]
    pairs = list(zip(stages, tail.blocks, strict=True))
    pairs += [(getattr(model, n), m) for n, m in zip(norm_names, tail.norm, strict=True)]
    if hasattr(tail.head, "head"):
        pairs.append((model.head, tail.head.head))
    elif hasattr(model, "fc_norm"):
        pairs.append((model.fc_norm, tail.head))
    for mine, trained in pairs:
        mine.load_state_dict(trained.state_dict())
    return [mine for mine, _ in pairs]


def find_layer(model: nn.Module) -> nn.Module:
    """The usual Grad-CAM layer of each family."""
    if hasattr(model, "bn2"):
        return model.bn2
    return model.blocks[-1].norm1 if hasattr(model, "blocks") else model.stages[-1]


def to_map(tokens: Tensor) -> Tensor:
    """(V, 1 + N, C) -> (V, C, h, w)."""
    side = int((tokens.shape[1] - 1) ** 0.5)
    return tokens[:, 1:].transpose(1, 2).reshape(len(tokens), -1, side, side)


def upright(maps: np.ndarray) -> np.ndarray:
    """Map the (4, S, S) maps of the views back to upright."""
    return np.stack([maps[0], maps[1][:, ::-1], maps[2][::-1], np.rot90(maps[3], -1)])
