"""Probes against scikit-learn's ridge, against a circuit that is known, and against data with nothing to
find.
"""

import numpy as np
import pytest
from circuit_models import EOS, FIRST_STEM, STEMS, TO, WITHOUT, carrying_model
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.preprocessing import StandardScaler

import interpretability.probes as probes
from corpus.tokenizer import train_tokenizer
from interpretability.case_pairs import targets_of
from interpretability.probes import (
    POSITIONS,
    STRENGTH,
    Word,
    find_words,
    predict_unseen,
    probe,
    ridge,
    word_streams,
)


def random_data(words: int = 400, size: int = 20, classes: int = 3, lemmas: int = 80) -> tuple:
    """Features (N, D), of which the first ones depend on the label; labels (N,); lemmas (N,)."""
    generator = np.random.default_rng(0)
    labels = generator.integers(classes, size=words)
    x = generator.normal(size=(words, size)) * generator.uniform(0.1, 9, size) + generator.normal(size=size)
    x[np.arange(words), labels] += 12
    return x, np.array(["nomn", "gent", "datv"])[labels], generator.integers(lemmas, size=words).astype(str)


@pytest.mark.parametrize("strength", [0.1, 100.0])
def test_ridge_is_that_of_scikit_learn(strength):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(60, 8)) + 2, generator.normal(size=(60, 3)) - 1
    W, b = ridge(x, y, strength)
    expected = Ridge(alpha=strength).fit(x, y)
    assert np.allclose(W, expected.coef_.T, rtol=0, atol=1e-9) and np.allclose(
        b, expected.intercept_, rtol=0, atol=1e-9
    )


def test_predictions_are_those_of_scikit_learn(monkeypatch):
    x, labels, lemmas = random_data()
    fitted = []
    monkeypatch.setattr(probes, "ridge", lambda *data: fitted.append((data, ridge(*data))) or fitted[-1][1])
    predicted = predict_unseen(x, labels, lemmas)
    assert len(fitted) == probes.FOLDS
    for (train, _, _), _ in fitted:
        assert np.allclose(train.mean(0), 0) and np.allclose(train.std(0), 1)

    # The fold of each lemma is found by the words that a probe was not trained on
    unique, number = np.unique(lemmas, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(unique))[number] % probes.FOLDS
    for k in range(probes.FOLDS):
        scaler = StandardScaler().fit(x[fold != k])
        # Its targets are -1 and 1 where ours are 0 and 1: that stretches the outputs and changes no choice
        model = RidgeClassifier(alpha=STRENGTH).fit(scaler.transform(x[fold != k]), labels[fold != k])
        assert (model.predict(scaler.transform(x[fold == k])) == predicted[fold == k]).all()
        assert not set(lemmas[fold == k]) & set(lemmas[fold != k])


def test_a_label_that_can_be_read_and_shuffled_labels():
    x, labels, lemmas = random_data()
    assert (predict_unseen(x, labels, lemmas) == labels).mean() > 0.8
    assert abs((predict_unseen(x, labels, lemmas, shuffled=True) == labels).mean() - 1 / 3) < 0.1


def test_only_unseen_lemmas_are_judged():
    """A label that is the lemma's own, with features that name the lemma: known for lemmas seen, unknown for
    others.
    """
    generator = np.random.default_rng(2)
    number = np.repeat(np.arange(60), 8)
    labels = np.array(["sing", "plur"])[generator.integers(2, size=60)][number]
    x = np.eye(60)[number]
    W, b = ridge(x, (labels[:, None] == np.unique(labels)).astype(float), 1.0)
    assert (np.unique(labels)[(x @ W + b).argmax(1)] == labels).all()
    assert (predict_unseen(x, labels, number.astype(str)) == labels).mean() < 0.65


def test_the_layer_in_which_the_case_arrives_is_found():
    model = carrying_model()
    words = []
    for stem in range(FIRST_STEM + 1, FIRST_STEM + STEMS):
        for preposition, case, number in ((WITHOUT, "gent", "sing"), (TO, "datv", "plur")):
            words.append(
                Word(
                    [EOS, preposition, stem, FIRST_STEM],
                    str(stem),
                    case,
                    number,
                    "femn" if stem % 2 else "masc",
                )
            )
    streams = word_streams(model, words)
    assert streams.shape == (2, 4, len(words), 12)
    assert np.allclose(streams[0, 0], model.embedding.weight.detach()[[word.ids[-2] for word in words]])

    result = probe(model, words)
    assert result["case"]["chance"] == 0.5 and result["case"]["lemmas"] == STEMS - 1
    for position in POSITIONS:
        right = [each["share"] for each in result["case"][position]["real"]]
        assert right[2:] == [1, 1] and max(right[:2]) <= 0.55  # it comes with the second layer
        assert all(0.2 < each["share"] < 0.8 for each in result["case"][position]["shuffled"])
    assert result["gender"]["words"] == len(words)


def test_words_of_real_sentences():
    words = "Он жил шёл без к дом гор пела женщин".split() + [a + b for a in "ауеыоя" for b in "ауеыоя"]
    tokenizer = train_tokenizer([f" {' '.join(words)} "] * 9, 600)
    found = find_words(targets_of(["Он жил без дома.", "Он шёл к горам, ё.", "Он пел без них."]), tokenizer)
    assert [each[1:] for each in found] == [("дом", "gent", "sing", "masc"), ("гора", "datv", "plur", "")]
    assert [tokenizer.decode(each.ids[1:]) for each in found] == ["Он жил без дома", "Он шёл к горам"]
    # A word that is one token has no ending to be predicted
    whole = train_tokenizer(["Он жил без дома. " * 9], 600)
    assert find_words(targets_of(["Он жил без дома, ё."]), whole) == []


def test_a_word_with_a_capital_is_judged_by_its_own_tokens():
    """«Москве» is one token, though «москве» is not; «Ваню» is two, and its first one also begins «Ваня»."""
    letters = [a + b for a in "аскевмюяы" for b in "аскевмюяы"]
    tokenizer = train_tokenizer([f" Он жил в Москве про Ван {' '.join(letters)} "] * 9, 600)
    assert len(tokenizer.encode(" Москве").ids) == 1 < len(tokenizer.encode(" москве").ids)
    targets = targets_of(["Он жил в Москве, ё.", "Он пел про Ваню."])
    assert [target.case for (target,) in targets] == ["loct", "accs"]
    assert [tokenizer.decode(word.ids[1:]) for word in find_words(targets, tokenizer)] == ["Он пел про Ваню"]


def test_an_interval_counts_lemmas_and_not_words():
    right = np.array([True] * 50 + [False] * 50)
    many, few = np.arange(100).astype(str), np.repeat(["a", "b"], 50)
    wide, narrow = (probes.ratio_by_lemma(right, lemmas) for lemmas in (few, many))
    assert wide["share"] == narrow["share"] == 0.5
    assert (wide["low"], wide["high"]) == (0, 1) and narrow["low"] > 0.35
