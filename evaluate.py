"""How good is the trained model, in the ways that matter here:  python evaluate.py

Perplexity, samples, facts, case endings, each beside what it is to beat: count models and xz, real text, chance.
Prints a short table for each and writes evaluation.json and evaluation.png to out_dir. It judges the model on the articles
that train.py held out, so give it the flags that train.py had. --text, --facts and --pairs run that part alone on a
file of yours; evaluation.json keeps what the other parts came to, as long as the weights are the same.
"""

import csv
import hashlib
import itertools
import json
import lzma
import math
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from corpus.sources import clean, load_articles, open_text
from corpus.tokenizer import decode_sentences, encode, encode_prompt, load_tokenizer
from dataset import load_text_of
from evaluation.case_endings import CASES, RUSSIAN, agreement, evaluate_cases
from evaluation.scoring import WORD, Scorer, evaluate_facts, evaluate_pairs, load_pairs, morphology
from support.checkpoint import TOKENIZER, load_model
from support.cli import UserError, atomic_write, make_parser, parse_args, run_script
from support.continuation import PROMPTS
from support.device import choose_device

FACTS = Path(__file__).parent / "data" / "facts.jsonl"
TEMPERATURES = (0.5, 1.0)
SAMPLES, SAMPLE_TOKENS = 96, 128  # texts that are generated at each temperature, and their length
PRIOR = 500  # what the unigrams weigh in the bigram model, in tokens


# Perplexity


def evaluate_text(scorer: Scorer, ids: list[int], text: str, train: np.ndarray) -> dict:
    """How well the ids of a text are predicted, <EOS> included, by the model, by count models, and by xz.

    Per token as perplexity, exp of the mean loss; per character and per byte of the text in bits. The window slides by
    half its length, so that every token has half a window before it; "fixed windows" do not overlap, and the loss by
    position is theirs. The text stands behind an <EOS>. xz (preset 9) compresses the text alone.
    """
    chars, size, window = len(text), len(text.encode()), scorer.model.max_seq_len
    sequence = np.array([scorer.eos, *ids])
    sliding, fixed = (
        scorer.token_losses([sequence], [1], f"perplexity, {title}", stride)[0]
        for title, stride in (("sliding", max(1, window // 2)), ("fixed", window))
    )
    unigram, bigram = count_losses(train, sequence, scorer.model.vocab_size)
    named = {"model": sliding, "model, fixed windows": fixed, "bigram counts": bigram, "unigram counts": unigram}
    result = {"tokens": len(ids), "characters": chars, "bytes": size, "bits": {}}
    for name, losses in named.items():
        bits = float(losses.sum()) / math.log(2)
        each = {"perplexity": math.exp(losses.mean()), "bits_per_char": bits / chars, "bits_per_byte": bits / size}
        result["bits"][name] = each
    packed = 8 * len(lzma.compress(text.encode(), preset=9))
    result["bits"]["xz"] = {"bits_per_char": packed / chars, "bits_per_byte": packed / size}
    places = np.arange(len(fixed)) % window
    result["loss_by_position"] = (np.bincount(places, fixed) / np.bincount(places)).tolist()
    return result


def count_losses(train: np.ndarray, ids: np.ndarray, vocab_size: int) -> tuple[np.ndarray, np.ndarray]:
    """-log p in nats of ids[1:] by how often tokens, and pairs of tokens, stand in the training text.

    Unigrams with one added to each count: p(t) = (n(t) + 1) / (N + V). Bigrams with PRIOR added, shared out as the
    unigrams have it: p(t | s) = (n(s, t) + PRIOR p(t)) / (n(s) + PRIOR)  (MacKay & Peto 1995).
    """
    train, ids = np.asarray(train, np.int64), np.asarray(ids, np.int64)
    unigram = (np.bincount(train, minlength=vocab_size) + 1) / (len(train) + vocab_size)
    pairs, counts = np.unique(train[:-1] * vocab_size + train[1:], return_counts=True)
    asked = ids[:-1] * vocab_size + ids[1:]
    place = np.searchsorted(pairs, asked).clip(max=len(pairs) - 1)
    together = np.where(pairs[place] == asked, counts[place], 0)
    before = np.bincount(train[:-1], minlength=vocab_size)[ids[:-1]]
    p = unigram[ids[1:]]
    return -np.log(p), -np.log((together + PRIOR * p) / (before + PRIOR))


# Samples


def evaluate_samples(scorer: Scorer, held_out: list[str], train_words: list[list[str]], seed: int) -> dict:
    """What the model writes from <EOS> on, at each of TEMPERATURES, beside the held-out text ("real").

    "known": the share of its Russian-letter words that pymorphy3's dictionary has. "recited": the share of its runs of
    four words, within a sentence, that stand in the training text. "agreement": see cases.agreement.
    """
    generator = torch.Generator(scorer.device).manual_seed(seed)
    texts, continuations = {"real": held_out}, {}
    for temperature in TEMPERATURES:
        start = torch.full((SAMPLES, 1), scorer.eos, device=scorer.device)
        tokens = scorer.model.generate(start, temperature, generator=generator)
        rows = torch.stack(list(itertools.islice(tokens, min(SAMPLE_TOKENS, scorer.model.max_seq_len))), dim=1).tolist()
        written = [decode_sentences(scorer.tokenizer, row) for row in rows]
        for each in written:
            last_words = each.pop().split()[:-1]  # the last word may be a part of one
            each.append(" ".join(last_words))
        texts[str(temperature)] = list(itertools.chain(*written))
        for prompt in PROMPTS:
            prompt, ids = encode_prompt(scorer.tokenizer, prompt)
            tokens = scorer.model.generate(torch.tensor([ids], device=scorer.device), temperature, generator=generator)
            row = [token.item() for token in itertools.islice(tokens, 40)]
            text = prompt + decode_sentences(scorer.tokenizer, row)[0]
            continuations.setdefault(str(temperature), []).append(" ".join(text.split()))
    stands = runs_in(train_words, texts)
    result = {"continuations": continuations}
    for name, sentences in texts.items():
        words = [word for sentence in sentences for word in RUSSIAN.findall(sentence.lower())]
        known = sum(map(morphology().word_is_known, words)) / max(1, len(words))
        result[name] = {"words": len(words), "known": known, "recited": stands[name], "agreement": agreement(sentences)}
    return result


def words_of(sentences: Iterable[str]) -> list[list[str]]:
    """The words of each sentence in lower case; equal words are one string, to save memory."""
    return [[sys.intern(word) for word in WORD.findall(sentence.lower())] for sentence in sentences]


def runs_in(train_words: list[list[str]], texts: dict[str, list[str]]) -> dict[str, float]:
    """For each text, a list of sentences, the share of its runs of four words that stand in the training sentences."""
    runs = lambda words: zip(words, words[1:], words[2:], words[3:])
    asked = {name: [run for words in words_of(sentences) for run in runs(words)] for name, sentences in texts.items()}
    every = set(itertools.chain(*asked.values()))
    found = {run for words in train_words for run in runs(words) if run in every}
    return {name: sum(run in found for run in each) / max(1, len(each)) for name, each in asked.items()}


# What the person sees


def percent(part: dict) -> str:
    """A share with its 95% interval, or a dash where there is nothing to share."""
    return f"{part['accuracy']:5.1%} ({part['low']:.1%} to {part['high']:.1%})" if part["count"] else "–"


def table(title: str, *rows: tuple) -> None:
    """Print rows of equally many cells, the first cell left and the others right in columns; the first row is the header."""
    formats = {float: "{:.3f}", int: "{:,}", str: "{}"}
    rows = [[formats[type(cell)].format(cell) for cell in row] for row in rows]
    first, *widths = [max(map(len, column)) for column in zip(*rows)]
    print(f"\n{title}")
    for name, *cells in rows:
        print("  " + "  ".join([name.ljust(first), *map(str.rjust, cells, widths)]))


def print_text(result: dict) -> None:
    rows = [
        (name, each.get("perplexity", "–"), each["bits_per_char"], each["bits_per_byte"])
        for name, each in result["bits"].items()
    ]
    table(f"Perplexity of {result['tokens']:,} tokens: {result['name']}", ("", "per token", "bits/char", "bits/byte"), *rows)
    losses, edges = result["loss_by_position"], [0]
    while edges[-1] < len(losses):
        edges.append(min(max(1, 2 * edges[-1]), len(losses)))
    rows = [(f"{a + 1}" + f"-{b}" * (b > a + 1), float(np.mean(losses[a:b]))) for a, b in zip(edges, edges[1:])]
    table("Loss by position in the window: what context is worth", ("position", "nats"), *rows)


def print_samples(result: dict) -> None:
    print("\nSamples")
    for temperature, texts in result["continuations"].items():
        for text in texts:
            print(f"  {temperature}  {text}")
    names = {"real": "held-out text", **{name: f"temperature {name}" for name in result["continuations"]}}
    rows = []
    for name, title in names.items():
        each = result[name]
        agreeing = [percent(part).split(" (")[0] for part in each["agreement"].values()]
        rows.append((title, each["words"], f"{each['known']:.1%}", f"{each['recited']:.1%}", *agreeing))
    header = ("", "words", "in the dictionary", "recited 4-grams", "preposition+noun agree", "adjective+noun agree")
    table("Generated text beside real text", header, *rows)


def print_facts(result: dict) -> None:
    keys = ("top1", "top1_corrected", "mrr", "mrr_corrected", "exact", "chance")
    header = ("", "facts", "top-1", "corrected", "MRR", "corrected", "exact", "chance")
    cell = lambda key, value: f"{value:.3f}" if "mrr" in key else f"{value:.1%}"
    row = lambda name, each: (name, each["count"], *(cell(key, each[key]) for key in keys))
    rows = [row(name, each) for name, each in result["by_relation"].items()]
    table("Facts, the answers of a relation competing", header, *rows, row("all", result["overall"]))
    rows = [row(name, each) for name, each in result["by_sentences"].items()]
    table("Facts by the training sentences that hold subject and answer", ("sentences", *header[1:]), *rows)


def print_pairs(result: dict) -> None:
    rows = [(name, each["count"], percent(each)) for name, each in result["by_phenomenon"].items()]
    title = f"Minimal pairs: the grammatical sentence is the likelier one ({result['name']}), chance 50%"
    table(title, ("", "pairs", "right (95%)"), *rows, ("all", result["overall"]["count"], percent(result["overall"])))
    ranked = sorted(result["by_paradigm"].items(), key=lambda item: -item[1]["accuracy"])
    chosen = ranked if len(ranked) <= 10 else ranked[:5] + ranked[-5:]
    table("  best and worst paradigms", ("", "pairs", "right (95%)"), *((n, e["count"], percent(e)) for n, e in chosen))


def print_cases(result: dict) -> None:
    parts = {"all": result["overall"]}
    for key in ("by_rule", "by_number", "by_case"):
        parts |= result[key]
    parts |= dict(sorted(result["by_preposition"].items(), key=lambda item: -item[1]["count"])[:10])  # the most frequent
    if not result["overall"]["count"]:
        return print("\nCase endings: the text has no word to ask for")
    rows = [(name, each["count"], percent(each)) for name, each in parts.items()]
    table(f"Case endings: the right form is the likeliest, chance {result['chance']:.1%}", ("", "words", "right (95%)"), *rows)
    rows = [(case, *(round(value) for value in row)) for case, row in zip(CASES, result["confusion"])]
    table("  the case (rows) and what the model would have (columns)", ("", *CASES), *rows)


def draw(results: dict, log: Path, path: Path) -> None:
    """evaluation.png: the loss curve of training_log.csv, loss by position, facts by relation, confusion of cases."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, ((curve, position), (facts, confusion)) = plt.subplots(2, 2, figsize=(13, 10), layout="constrained")
    for axis, title in ((curve, "training"), (position, "loss by position"), (facts, "facts"), (confusion, "case endings")):
        axis.set_title(title)
    if log.exists():
        with open(log, encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        for name in ("train_loss", "val_loss"):
            curve.plot([int(row["tokens"]) for row in rows], [float(row[name]) for row in rows], label=name)
        curve.set(xlabel="tokens", ylabel="nats per token")
        curve.legend()
    if "text" in results:
        losses = results["text"]["loss_by_position"]
        position.plot(range(1, len(losses) + 1), losses, ".-")
        position.set(xlabel="position in the window", ylabel="nats per token", xscale="log")
    if "facts" in results:
        relations = results["facts"]["by_relation"]
        places = np.arange(len(relations))
        for shift, key in ((-0.2, "top1"), (0.2, "exact")):
            facts.barh(places + shift, [each[key] for each in relations.values()], 0.4, label=key)
        facts.plot([each["chance"] for each in relations.values()], places, "k|", label="chance")
        facts.set_yticks(places, list(relations))
        facts.set(xlim=(0, 1))
        facts.invert_yaxis()
        facts.legend()
    if "cases" in results:
        counts = np.array(results["cases"]["confusion"])
        part = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        confusion.imshow(part, cmap="Blues", vmin=0, vmax=1)
        for i, j in np.ndindex(*counts.shape):
            color = "white" if part[i, j] > 0.5 else "black"
            confusion.text(j, i, f"{counts[i, j]:.0f}", ha="center", va="center", color=color)
        for ticks in (confusion.set_xticks, confusion.set_yticks):
            ticks(range(len(CASES)), CASES)
        confusion.set(xlabel="the model's case", ylabel="the sentence's case")
    figure.savefig(path, format="png", dpi=100)
    plt.close(figure)


# The script


def load_facts(path: Path) -> list[dict]:
    """The facts of a .jsonl file. Raises UserError if a line is none."""
    facts = []
    with open_text(path) as file:
        lines = list(file)  # ends at line feeds only, so that U+2028 may stand in a text
    for number, line in enumerate(lines, 1):
        if line.isspace():
            continue
        try:
            fact = json.loads(line)
            facts.append({key: clean(str(fact[key])) for key in ("relation", "prompt", "answer")})
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}, line {number}: no JSON object with relation, prompt and answer") from error
    if not facts:
        raise UserError(f"{path} holds no facts (--facts)")
    return facts


def main() -> None:
    parser = make_parser(__doc__)
    group = parser.add_argument_group("one part alone, on data of yours")
    group.add_argument("--text", help="perplexity of a text: jsonl, json, txt, csv, parquet; its column is --text_column")
    group.add_argument("--facts", help="facts: a .jsonl file with relation, prompt, answer")
    group.add_argument("--pairs", help="minimal pairs: a CSV file or hub data set with source_sentence, target_sentence")
    args = parse_args(parser)
    everything = not (args.text or args.facts or args.pairs)
    began, out = time.monotonic(), Path(args.out_dir)
    device, dtype = choose_device()
    model = load_model(out)
    tokenizer = load_tokenizer(out / TOKENIZER, model)
    model.to(device)
    scorer, results = Scorer(model, tokenizer, device, dtype), {}

    pairs = load_pairs(args.pairs) if args.pairs else []  # what can be wrong with it shows before the work begins
    facts = load_facts(Path(args.facts or FACTS)) if everything or args.facts else []
    if everything or args.text or args.facts:
        text, name = load_text_of(model, args)
    if everything or args.text:
        ids, name = text.val.tolist(), f"the articles held out from {name}"
        if args.text:
            name = args.text
            ids = [token for article in load_articles(name, args.text_column) for token in encode(tokenizer, article)]
        if not ids:
            raise UserError(f"{name} holds no text (--text)")
        held_out = decode_sentences(tokenizer, ids)
        results["text"] = {"name": name, **evaluate_text(scorer, ids, "".join(held_out), text.train)}
        print_text(results["text"])
    if everything or args.facts:
        train_words = words_of(decode_sentences(tokenizer, text.train.tolist()))
        results["facts"] = {"name": args.facts or f"data/{FACTS.name}", **evaluate_facts(scorer, facts, train_words)}
        print_facts(results["facts"])
    if everything:
        results["samples"] = evaluate_samples(scorer, held_out, train_words, args.seed)
        print_samples(results["samples"])
        results["cases"] = evaluate_cases(scorer, held_out)
        print_cases(results["cases"])
        print("\nMinimal pairs: not bundled; with the benchmark RuBLiMP:  python evaluate.py --pairs RussianNLP/rublimp")
    if pairs:
        results["pairs"] = {"name": args.pairs, **evaluate_pairs(scorer, pairs)}
        print_pairs(results["pairs"])

    weights = hashlib.blake2b((out / "parameters.pt2").read_bytes(), digest_size=8).hexdigest()
    results = {"weights": weights, **earlier(out / "evaluation.json", weights), **results}
    with atomic_write(out / "evaluation.json") as temporary:
        temporary.write_text(json.dumps(results, ensure_ascii=False, indent=1), encoding="utf-8")
    with atomic_write(out / "evaluation.png") as temporary:
        draw(results, out / "training_log.csv", temporary)
    print(f"\n{time.monotonic() - began:.0f} seconds; all of it is in {out / 'evaluation.json'} and {out / 'evaluation.png'}")


def earlier(path: Path, weights: str) -> dict:
    """What an earlier run found out about the same weights."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        return results if results["weights"] == weights else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


if __name__ == "__main__":
    run_script(main)
