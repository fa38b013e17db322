"""Cases of the losses: costs, the cheapest pairs by trying all, points, values and gradients."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch

from tests.parity_xsam.second.book import Book, Undecided, numbered

FILE = "losses"
SURE = 1e-4  # least difference that decides
WEIGHTS = {"cls": 2, "mask": 5, "dice": 5}
Tensor = torch.Tensor


def at(grid: Tensor, points: Tensor) -> Tensor:
    """Read a map [h, w] bilinearly at points [P, 2], (x, y) in 0..1 of its whole extent; zero outside."""
    height, width = grid.shape
    x, y = points[:, 0] * width - 0.5, points[:, 1] * height - 0.5
    found = torch.zeros(len(points), dtype=torch.float64)
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            values = grid[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            found = found + torch.where(inside, share * values, 0)
    return found


def entropy(logits: Tensor, wanted: Tensor) -> Tensor:
    """Average the binary cross entropy of logits [P]."""
    return -(wanted * torch.sigmoid(logits).log() + (1 - wanted) * torch.sigmoid(-logits).log()).mean()


def dice(logits: Tensor, wanted: Tensor) -> Tensor:
    share = torch.sigmoid(logits)
    return 1 - (2 * (share * wanted).sum() + 1) / (share.sum() + wanted.sum() + 1)


def costs(masks: Tensor, classes: Tensor, targets: Tensor, labels: list[int], points: Tensor) -> Tensor:
    """Compute the cost of each query and target of an image: [Q, M]."""
    found = torch.zeros(len(masks), len(labels), dtype=torch.float64)
    sure = torch.softmax(classes, -1)
    wanted = [at(one.double(), points) for one in targets]
    for query, mask in enumerate(masks):
        logits = at(mask, points)
        for target, label in enumerate(labels):
            own = 5 * entropy(logits, wanted[target]) + 5 * dice(logits, wanted[target])
            found[query, target] = own - 2 * sure[query, label]
    return found


def cheapest(cost: np.ndarray) -> tuple[list[int], list[int]]:
    """Find the pairs of all queries or all targets with the least sum, by trying every one.

    Raises Undecided if there are two such.
    """
    queries, targets = cost.shape
    if targets <= queries:
        tries = [list(zip(one, range(targets), strict=True)) for one in itertools.permutations(range(queries), targets)]
    else:
        tries = [list(zip(range(queries), one, strict=True)) for one in itertools.permutations(range(targets), queries)]
    sums = [sum(cost[pair] for pair in one) for one in tries]
    least, *others = sorted(sums)
    if others and others[0] - least < SURE:
        raise Undecided("two pairings cost the same")
    pairs = sorted(tries[sums.index(least)])
    return [pair[0] for pair in pairs], [pair[1] for pair in pairs]


def prediction_loss(draw: Callable, masks: Tensor, classes: Tensor, targets: list, labels: list) -> tuple[dict, dict]:
    """Compute the unweighted losses of one prediction, and what leads to them, named as recorded.

    draw     draws the points: of a kind, so many sets of so many
    masks    [B, Q, h, w]; classes [B, Q, K + 1]; targets [M, H, W] of each image, labels of each
    """
    notes, pairs = {}, []
    for image, (own, wanted) in enumerate(zip(targets, labels, strict=True)):
        points = draw(f"match_points_{image}", 1, 1)
        with torch.no_grad():
            cost = costs(masks[image], classes[image], own, wanted, points[0])
        queries, chosen = cheapest(cost.numpy())
        notes |= {f"match_points_{image}": points, f"cost_{image}": cost}
        notes |= {f"assigned_query_{image}": torch.tensor(queries, dtype=torch.int64)}
        notes |= {f"assigned_target_{image}": torch.tensor(chosen, dtype=torch.int64)}
        pairs += [(image, *pair) for pair in zip(queries, chosen, strict=True)]
    notes["oversampled_points"] = draw("oversampled_points", len(pairs), 3)
    notes["uniform_points"] = draw("uniform_points", len(pairs), 0.25)
    count = len(draw("sizes", 1, 1)[0])
    mask_losses, dice_losses = [torch.zeros((), dtype=torch.float64)], [torch.zeros((), dtype=torch.float64)]
    largest = [max(one.shape[side] for one in targets) for side in (1, 2)]
    for number, (image, query, target) in enumerate(pairs):
        many = notes["oversampled_points"][number]
        unsure = least_sure(at(masks[image, query].detach(), many), int(0.75 * count))
        points = torch.cat([many[unsure], notes["uniform_points"][number]])
        filled = torch.zeros(*largest, dtype=torch.float64)
        own = targets[image][target]
        filled[: own.shape[0], : own.shape[1]] = own
        logits, wanted = at(masks[image, query], points), at(filled, points)
        mask_losses.append(entropy(logits, wanted))
        dice_losses.append(dice(logits, wanted))
    share = max(sum(map(len, labels)), 1)
    found = {"cls": class_loss(classes, pairs, labels)}
    return found | {"mask": sum(mask_losses) / share, "dice": sum(dice_losses) / share}, notes


def least_sure(logits: Tensor, count: int) -> Tensor:
    """Return the places of the smallest of logits [P], leaving signs out.

    Raises Undecided if the next one is as small.
    """
    order = logits.abs().argsort()
    last, following = logits.abs()[order[count - 1 : count + 1]] if count else (0, 1)
    if following - last < SURE * max(float(logits.abs().max()), 1) / 10:
        raise Undecided("two points are equally unsure")
    return order[:count]


def class_loss(classes: Tensor, pairs: list, labels: list) -> Tensor:
    """Average the cross entropy, a query without a partner weighing a tenth and being of the last class."""
    total = weight = 0
    partners = {(image, query): labels[image][target] for image, query, target in pairs}
    for image in range(classes.shape[0]):
        for query in range(classes.shape[1]):
            label = partners.get((image, query), classes.shape[2] - 1)
            own = 1 if (image, query) in partners else 0.1
            total = total - own * torch.log_softmax(classes[image, query], -1)[label]
            weight += own
    return total / weight


def drawing(book: Book, count: int) -> Callable[[str, int, float], Tensor]:
    """Return a draw of points, `count` being their number for a loss."""

    def draw(kind: str, sets: int, times: float) -> Tensor:
        number = count - int(0.75 * count) if times < 1 else int(times * count)
        return torch.zeros(sets, number, 2) if kind == "sizes" else book.uniform(sets, number, 2)

    return draw


def add_case(book: Book, name: str, counts: list[int], sizes: list[tuple[int, int]], **given: int) -> None:
    """Add a case of so many targets of each image, with their sizes; `given`: layers, queries, points, missing."""
    layers, queries, points = (given.get(key, usual) for key, usual in (("layers", 2), ("queries", 5), ("points", 33)))
    kinds, missing = book.between(2, 6), given.get("missing", 0)
    kinds += missing
    targets = [
        np.array([book.blob(*size) for _ in range(count)]).reshape(count, *size)
        for count, size in zip(counts, sizes, strict=True)
    ]
    labels = [book.rng.integers(0, kinds - missing, count).tolist() for count in counts]
    tensors = numbered("mask_labels", targets)
    tensors |= numbered("class_labels", [torch.tensor(own, dtype=torch.int64) for own in labels])
    parts, total, inputs = {}, 0, {}
    wide = [torch.from_numpy(own).double() for own in targets]
    for name_of in ["final", *(f"aux{number}" for number in range(layers - 1))]:
        masks = book.normal(len(counts), queries, 9, 13, scale=2).requires_grad_()
        classes = book.normal(len(counts), queries, kinds + 1)
        classes[-1, :, kinds - missing : kinds] = -1e9  # the last image has fewer classes
        found, notes = prediction_loss(drawing(book, points), masks, classes.requires_grad_(), wide, labels)
        suffix = "" if name_of == "final" else f"_{name_of[3:]}"
        parts |= {f"loss_{term}{suffix}": value.item() for term, value in found.items()}
        total = total + sum(WEIGHTS[term] * value for term, value in found.items())
        tensors |= {f"{name_of}_{key}": value for key, value in notes.items()}
        tensors |= {f"{name_of}_mask_logits": masks, f"{name_of}_class_logits": classes}
        inputs[name_of] = masks, classes
    total.backward()
    for name_of, (masks, classes) in inputs.items():
        tensors |= {f"{name_of}_mask_grad": masks.grad, f"{name_of}_class_grad": classes.grad}
    weighted = {key: WEIGHTS[key.split("_")[1]] * value for key, value in parts.items()}
    book.add(FILE, name, {"total": total.item(), "unweighted": parts, "loss": weighted}, tensors)


def add(book: Book) -> None:
    """Add the cases."""
    add_case(book, "three_pictures", [2, 1, 3], [(17, 31)] * 3, layers=4)
    add_case(book, "other_sizes", [2, 3], [(30, 14), (21, 25)], queries=6, points=50)
    add_case(book, "too_many_targets", [6], [(19, 19)], queries=4)
    add_case(book, "empty_in_the_middle", [1, 0, 2], [(16, 20)] * 3)
    add_case(book, "fewer_classes_in_the_last", [2, 2], [(12, 40)] * 2, missing=2, layers=3)
    add_case(book, "one_point", [2], [(8, 8)], points=4, layers=1)
    classes = book.normal(2, 3, 4)
    value = 2 * class_loss(classes, [], [])
    about = {"result": {"loss_cls": float(value), "loss_mask": 0.0, "loss_dice": 0.0}}
    book.add(FILE, "no_targets", about, {"final_class_logits": classes, "final_mask_logits": book.normal(2, 3, 5, 7)})
    renamed = {
        key.replace("loss_cls", "loss_cross_entropy"): value
        for key, value in book.about[FILE]["three_pictures"]["unweighted"].items()
    }
    about = {"on": "three_pictures", "matcher_class_cost_2": renamed}
    book.add(FILE, "stock_transformers_criterion_unweighted", about, {})
