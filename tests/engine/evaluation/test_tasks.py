"""What a set's metrics are: against clip_benchmark itself, against slow computations, and against chance."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from support import evalsets
from support.evalsets import (
    CLASSES,
    TEMPLATES,
    LinearClip,
    association,
    card,
    classification,
    embed,
    npy,
    picture,
    retrieval,
    selection,
)
from torch.utils.data import DataLoader

from analysis import bootstrap
from engine.data.archive import read_members
from engine.evaluation import loading, pictures, reading
from engine.evaluation.model import Model
from engine.evaluation.tasks import answer_set
from engine.schema.evaluation import Evaluation


def model(seed=0, **options):
    return Model(LinearClip(seed), evalsets.transform, evalsets.tokenizer, "cpu", **options)


def evaluated(eval_card, seed=0):
    metrics, outcomes = answer_set(reading.read(eval_card), model(seed))
    # Resampling begins with what the samples, each taken once, have to give.
    (value,) = bootstrap.metric_of(outcomes, eval_card.metric, np.array([outcomes.count]))
    assert value == pytest.approx(metrics[eval_card.metric], abs=1e-6)
    # Of associations, instances with other numbers of candidates are in no main metric.
    count = len(scored(eval_card)) if eval_card.task == "association" else eval_card.images
    assert sum(outcomes.count) == count
    return metrics


def scored(eval_card):
    """The instances that the main metric of an association set is over."""
    return [i for i in reading.read(eval_card).instances if len(i.candidates) >= 10]


def stock(eval_card, seed=0):
    """The numbers of clip_benchmark's own reader, loop and metrics."""
    from clip_benchmark.datasets.builder import build_dataset
    from clip_benchmark.metrics import image_caption_selection, zeroshot_classification, zeroshot_retrieval

    clip, tokenizer = LinearClip(seed), evalsets.tokenizer
    task = eval_card.task
    dataset = build_dataset(
        f"wds/{eval_card.name}", root=eval_card.path, transform=evalsets.transform, download=False, task=task
    )
    loader = DataLoader(dataset.batched(64), batch_size=None, num_workers=0)
    if task == "zeroshot_retrieval":
        return zeroshot_retrieval.evaluate(clip, loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10])
    if task == "image_caption_selection":
        return image_caption_selection.evaluate(clip, loader, tokenizer, "cpu", amp=False)
    classes, templates = dataset.classes, dataset.templates
    return zeroshot_classification.evaluate(clip, loader, tokenizer, classes, templates, "cpu", amp=False)


def members(eval_card, *extensions):
    """The contents of a set's members in order, read by clip_benchmark's rule for file names."""
    found = []
    for shard in sorted((reading.Path(eval_card.path) / "test").glob("*.tar")):
        data = shard.read_bytes()
        found += [data[m.offset : m.offset + m.num_bytes] for m in read_members(shard) if m.name.endswith(extensions)]
    return found


def assert_equal_to_stock(eval_card, seed=0):
    found, expected = evaluated(eval_card, seed), stock(eval_card, seed)
    compared = {name: value for name, value in expected.items() if not math.isnan(value)}
    assert {name: found[name] for name in compared} == compared  # to the last bit
    assert found.keys() - compared.keys() <= {"mean_recall@1"}


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_classification_is_that_of_clip_benchmark(tmp_path):
    assert_equal_to_stock(classification(tmp_path / "set", 150, shards=3))


@pytest.mark.filterwarnings("ignore:y_pred contains classes not in y_true")
def test_fewer_than_five_classes_have_no_top_five(tmp_path):
    eval_card = classification(tmp_path / "set", 30, class_names=["cat", "dog", "bus"])
    assert_equal_to_stock(eval_card)
    assert "acc5" not in evaluated(eval_card)


def test_transparent_pictures_lose_their_alpha_as_in_clip_benchmark_and_are_counted(tmp_path, capsys):
    samples = [{"png": picture(n, mode="RGBA"), "cls": str(n % len(CLASSES)).encode()} for n in range(20)]
    samples += [{"png": picture(n), "cls": b"0"} for n in range(20, 30)]
    texts = {"classnames": CLASSES, "zeroshot_classification_templates": TEMPLATES}
    evalsets.write_set(tmp_path / "set", samples, **texts)
    assert_equal_to_stock(card(tmp_path / "set", images=30, classes=len(CLASSES)))
    assert "20 images have an alpha channel; it is dropped" in capsys.readouterr().err


def test_retrieval_is_that_of_clip_benchmark_with_none_to_three_captions(tmp_path):
    captions = [[f"number {n} {'abc'[i]}" for i in range(n % 4)] for n in range(150)]
    eval_card = retrieval(tmp_path / "set", captions, shards=3, captions=sum(map(len, captions)))
    assert_equal_to_stock(eval_card)


CHOICES = [[f"number {n} {letter}" for letter in "abcd"] for n in range(150)]


def test_choosing_a_caption_is_that_of_clip_benchmark(tmp_path):
    eval_card = selection(tmp_path / "set", CHOICES)
    # Of several captions for one picture it knows no other accuracy.
    assert evaluated(eval_card) == {"text_acc": pytest.approx(stock(eval_card)["text_acc"], abs=1e-6)}


@pytest.mark.parametrize("facts", [{}, {"hf_repo": "theirs/set"}], ids=["own", "published"])
def test_choices_that_the_tokenizer_cuts_to_equal_tokens_are_refused_or_told_of(tmp_path, capsys, facts):
    choices = [["a" * 47 + letter for letter in "xy"], ["a" * 48 + letter for letter in "xy"], ["yes", "no"]]
    eval_card = selection(tmp_path / "set", choices).model_copy(update=facts)
    said = f"/1.tar, key '00001': the captions '{'a' * 48}x' and '{'a' * 48}y' have equal tokens for this model"
    if not facts:
        with pytest.raises(ValueError, match=rf"'set': \S+{said}.*longer context: mend"):
            evaluated(eval_card)
        return
    assert evaluated(eval_card)["text_acc"] * 6 % 2 == pytest.approx(1, abs=1e-5)  # a half, and ones and zeros
    assert said in capsys.readouterr().err


def predicted_slowly(eval_card, best=1):
    """The `best` classes of every image, and its label, in double precision."""
    image = embed(LinearClip(), members(eval_card, ".png", ".webp", ".jpeg"))
    vectors = []
    for name in CLASSES:
        mean = embed(LinearClip(), [template.replace("{c}", name) for template in TEMPLATES]).mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    order = np.argsort(-(image @ np.array(vectors).T), axis=1)
    return order[:, :best], np.array([int(data) for data in members(eval_card, ".cls")])


def with_records(folder, rows, columns, **facts):
    """A classification set of random labels with a record beside every image."""
    labels = np.random.default_rng(3).integers(len(CLASSES), size=len(rows))
    samples = [
        {"webp": picture(n, "WEBP"), "npy": npy(row), "cls": str(label).encode()}
        for n, (row, label) in enumerate(zip(rows, labels, strict=True))
    ]
    texts = {"classnames": CLASSES, "zeroshot_classification_templates": TEMPLATES}
    evalsets.write_set(folder, samples, shards=3, **texts)
    return card(folder, images=len(rows), classes=len(CLASSES), metadata=columns, **facts)


# DataComp's own sets have income groups, regions and years as numbers in these places.
@pytest.mark.parametrize(
    ("columns", "group_by", "metric", "best"),
    [
        (["region", "year", "y"], "region", "acc_worst_region", 1),
        (["income_ds", "income_meta", "region"], "income_ds", "acc_top5_wg", 5),
        (["region", "country"], "region", "acc_wg", 1),
    ],
    ids=["FMoW", "Dollar Street", "GeoDE"],
)
def test_a_worst_group_is_that_of_a_slow_computation(tmp_path, columns, group_by, metric, best):
    # The other columns would give other groups; the last group has four images.
    rows = [[7.0 + n % 2 for _ in columns] for n in range(330)]
    place = columns.index(group_by)
    for n, row in enumerate(rows):
        row[place] = 5 if n in (3, 100, 200, 300) else (n // 2) % 2
    eval_card = with_records(tmp_path / "set", rows, columns, metric=metric, group_by=group_by)
    predicted, true = predicted_slowly(eval_card, best)
    hits: dict[float, list[bool]] = {}
    for row, guesses, label in zip(rows, predicted, true, strict=True):
        hits.setdefault(row[place], []).append(label in guesses)
    found = evaluated(eval_card)
    assert found[metric] == pytest.approx(min(np.mean(hit) for hit in hits.values()), abs=1e-6)
    steadier = min(np.mean(hit) for hit in hits.values() if len(hit) >= 100)
    assert found[f"{metric}_min100"] == pytest.approx(steadier, abs=1e-6)
    assert found["acc1"] == pytest.approx(np.mean(predicted[:, 0] == true), abs=1e-6)


def test_the_best_five_of_fewer_classes_are_refused(tmp_path):
    eval_card = classification(tmp_path / "set", 10, class_names=["cat", "dog"])
    facts = {"metadata": ("income_ds",), "group_by": "income_ds", "metric": "acc_top5_wg"}
    data = reading.read(eval_card)
    data = dataclasses.replace(data, card=eval_card.model_copy(update=facts), metadata=np.zeros((10, 1)))
    with pytest.raises(ValueError, match="'set': acc_top5_wg is not defined with 2 classes"):
        answer_set(data, model())


def instances(num_images, count, seed=0):
    random = np.random.default_rng(seed)
    made = []
    for n in range(count):
        size = (5, 6, 10, 12)[n % 4]
        names = [f"{i:05d}" for i in random.choice(num_images, size, replace=False)]
        right = list(random.choice(names, random.integers(2, 5), replace=False))
        made.append({"cue": f"{'Ox' if n % 2 else 'tea'} {n // 3}", "candidates": names, "associations": right})
    return made


def test_winogavil_is_the_jaccard_index_of_a_slow_computation_on_unit_vectors(tmp_path):
    made = instances(30, 60)
    eval_card = association(tmp_path / "winogavil", made, 30)
    image = embed(LinearClip(), members(eval_card, ".jpg"))
    scores = {}
    for instance in made:
        cue = instance["cue"].lower()
        text = embed(LinearClip(), [("An " if cue[0] in "aeiou" else "A ") + cue])[0]
        similar = {name: image[int(name)] @ text for name in instance["candidates"]}
        right = set(instance["associations"])
        chosen = set(sorted(similar, key=similar.get)[-len(right) :])
        scores.setdefault(len(similar), []).append(len(chosen & right) / len(chosen | right))
    one = model()
    found = answer_set(reading.read(eval_card), one).metrics
    assert (one.clip.num_images, one.clip.num_texts) == (30, len({instance["cue"] for instance in made}))  # each once
    assert found == evaluated(eval_card)
    assert found["jaccard_score_10-12"] == pytest.approx(np.mean(scores[10] + scores[12]), abs=1e-6)
    assert found["jaccard_score_5-6"] == pytest.approx(np.mean(scores[5] + scores[6]), abs=1e-6)
    assert found["jaccard_score"] == pytest.approx(np.mean(list(itertools.chain(*scores.values()))), abs=1e-6)


def test_sets_that_describe_classes_alike_share_their_vectors(tmp_path):
    first = classification(tmp_path / "first")
    fewer = classification(tmp_path / "fewer", seed=1, class_names=["dog", "tea", "anvil"])
    others = classification(tmp_path / "others", seed=2, templates=["{c}"])
    one = model()
    shared = [answer_set(reading.read(eval_card), one).metrics for eval_card in (first, fewer, others)]
    # "anvil" is the only class of the second set that the first lacks; the third has templates of its own.
    assert one.clip.num_texts == len(CLASSES) * len(TEMPLATES) + len(TEMPLATES) + len(CLASSES)
    assert one.clip.num_images == 3 * 40
    assert shared == [evaluated(eval_card) for eval_card in (first, fewer, others)]


def test_worker_processes_change_nothing_even_if_they_are_more_than_the_shards(tmp_path, monkeypatch):
    eval_card = classification(tmp_path / "set", 150, shards=1)
    expected = evaluated(eval_card)
    monkeypatch.setattr(pictures, "MIN_IMAGES_FOR_WORKERS", 1)
    assert answer_set(reading.read(eval_card), model(num_workers=2)).metrics == expected


def test_bfloat16_changes_embeddings_a_little_and_leaves_them_float32(tmp_path):
    exact, rounded = model(), model(precision="bf16")
    images = torch.stack([evalsets.transform(evalsets.Image.new("RGB", (9, 9), (n, 50, 200))) for n in range(3)])
    with torch.no_grad():
        found, expected = rounded.encode_image(images), exact.encode_image(images)
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02 * expected.abs().max().item())


def test_a_model_that_knows_nothing_scores_chance_in_every_metric_and_on_average(tmp_path):
    p, num_pairs, groups = 1 / len(CLASSES), 40, (30, 30, 60)
    guesses = {}

    def add(eval_card, mean, variance):
        guesses[eval_card.name] = (eval_card.model_copy(update={"chance": mean}), variance)

    for metric in ("acc1", "mean_per_class_recall", "F1-macro_all"):
        eval_card = classification(tmp_path / metric, 120, metric=metric)
        sizes = np.bincount(reading.read(eval_card).labels)
        if metric == "F1-macro_all":
            mean, square = np.mean([evalsets.f1_of_guesses(int(n), 120 - int(n), p) for n in sizes], axis=0)
            add(eval_card, float(mean), square - mean**2)  # of one class: no less than that of their mean
        else:
            spread = 1 / 120 if metric == "acc1" else np.mean(1 / sizes) / len(sizes)
            add(eval_card, p, p * (1 - p) * spread)
    rows = [[float(g), 0.0] for g, size in enumerate(groups) for _ in range(size)]
    for metric, best in (("acc_wg", 1), ("acc_worst_region", 1), ("acc_top5_wg", 5)):
        mean, square = evalsets.lowest_of_groups(groups, best * p)
        facts = {"metric": metric, "group_by": "region"}
        add(with_records(tmp_path / metric, rows, ["region", "country"], **facts), mean, square - mean**2)
    # As many of the texts as fixed points in a random permutation: one on average, with variance one.
    add(retrieval(tmp_path / "pairs", [[f"number {n}"] for n in range(num_pairs)]), 1 / num_pairs, 1 / num_pairs**2)
    add(selection(tmp_path / "choices", CHOICES), 1 / 4, 1 / 4 * 3 / 4 / len(CHOICES))
    made = [instance for instance in instances(200, 120, seed=1) if len(instance["candidates"]) >= 10]
    pairs = [evalsets.jaccard_of_guesses(len(cue["candidates"]), len(cue["associations"])) for cue in made]
    means, squares = np.array(pairs).T
    add(association(tmp_path / "cues", made, 200), float(means.mean()), (squares - means**2).sum() / len(made) ** 2)
    sets = {name: eval_card for name, (eval_card, _) in guesses.items()}
    evaluation = Evaluation(name="chance", sets=sets, averages={"Average": tuple(sets)})

    # One whose scores are all equal, as that of weights that are zero: to the last digit, but for a drawn F1.
    dead = LinearClip()
    torch.nn.init.zeros_(dead.text)
    dead = Model(dead, evalsets.transform, evalsets.tokenizer, "cpu")
    for name, (eval_card, variance) in guesses.items():
        apart = answer_set(reading.read(eval_card), dead).metrics[eval_card.metric] - eval_card.chance
        if eval_card.group_by is not None:  # every group scores chance, and so does the lowest
            apart += eval_card.chance - (5 if eval_card.metric == "acc_top5_wg" else 1) * p
        assert abs(apart) < (4 * math.sqrt(variance) if eval_card.metric == "F1-macro_all" else 1e-6), name

    seeds = range(4)
    found = []
    for seed in seeds:
        guesser = Model(evalsets.Guesser(seed), evalsets.transform, evalsets.tokenizer, "cpu")
        values = {name: answer_set(reading.read(c), guesser).metrics[c.metric] for name, c in sets.items()}
        found.append([*values.values(), evaluation.averaged(values, frozenset())["Average"].value])
    chance = [c.chance for c in sets.values()]
    variances = np.array([variance for _, variance in guesses.values()])
    errors = np.sqrt([*variances, variances.sum() / len(sets) ** 2]) / math.sqrt(len(seeds))
    apart = (np.mean(found, axis=0) - [*chance, np.mean(chance)]) / errors
    assert np.abs(apart).max() < 4, dict(zip([*sets, "Average"], apart, strict=True))


def test_a_transform_that_is_split_gives_the_same_numbers_to_the_last_bit():
    _, transform, _ = loading.load_model("tiny-vit", None, random_weights=True)
    draw, finish = pictures.split_transform(transform)
    drawn = [
        evalsets.Image.open(evalsets.io.BytesIO(picture(n, size=size))) for n, size in enumerate([(40, 30), (9, 70)])
    ]
    pixels = torch.stack([draw(image) for image in drawn])
    assert pixels.dtype == torch.uint8
    assert torch.equal(finish(pixels), torch.stack([transform(image) for image in drawn]))
    assert finish(pixels).is_contiguous()
