"""Measures how good the trained model is:  python evaluate.py

Perplexity, facts, samples and case endings, each beside a baseline: count models and xz, chance, real text.
Prints short tables, and writes evaluation.json and evaluation.png to out_dir. Perplexity and case endings are
measured on the articles that were held out from training. --text, --facts and --pairs run one part alone on a
file of yours; evaluation.json keeps the results of the other parts as long as the weights are the same.
"""

import time
from argparse import Namespace
from pathlib import Path

from tokenizers import Tokenizer

from corpus.sources import load_articles
from corpus.tokenizer import decode_sentences, encode
from dataset import load_text_of
from evaluation.case_endings import evaluate_cases
from evaluation.facts import BUNDLED_FACTS, evaluate_facts, load_facts
from evaluation.minimal_pairs import evaluate_pairs, load_pairs
from evaluation.perplexity import evaluate_text
from evaluation.report import HELD_OUT, PICTURE, RESULTS, draw, load_results, report
from evaluation.samples import evaluate_samples
from evaluation.scoring import Scorer
from evaluation.words import words_of
from llm import LLM
from support.checkpoint import load_model
from support.cli import UserError, make_parser, parse_args, run_script
from support.device import choose_device


def read_flags() -> Namespace:
    parser = make_parser(__doc__)
    group = parser.add_argument_group("one part alone, on data of yours")
    group.add_argument("--text", help="perplexity of a text: a file, a folder or a data set of the hub")
    group.add_argument("--column", help="the column of --text with the text [that of the training text]")
    group.add_argument("--facts", help="a .jsonl file: relation, prompt, answer, perhaps paraphrase, subject")
    group.add_argument("--pairs", help="a CSV file or data set of the hub: source_sentence, target_sentence")
    args = parse_args(parser)
    if args.column is not None and args.text is None:
        advice = "give that, too (for the training text: --text_column)"
        raise UserError(f"--column is the column of --text: {advice}")
    return args


def encode_text(name: str, column: str, tokenizer: Tokenizer) -> list[int]:
    """The token ids of --text. Raises UserError if it cannot be read or is empty."""
    try:
        ids = [token for article in load_articles(name, column) for token in encode(tokenizer, article)]
    except ConnectionError as error:
        raise UserError(f"{name}: no such file or folder, and the hub cannot be reached (--text)") from error
    except UserError as error:  # it names the flag for the column of the training text
        raise UserError(str(error).replace("(--text_column)", "(--column)")) from error
    if not ids:
        raise UserError(f"{name} holds no text (--text)")
    return ids


def column_of(args: Namespace, model: LLM) -> str:
    """The column of --text: as given, or else as that of the training text."""
    if args.column is not None:
        return args.column
    settings = {} if "text_column" in args.given else model.trained_on.get("settings", {})
    return settings.get("text_column", args.text_column)


def main() -> None:
    args = read_flags()
    began, folder = time.monotonic(), Path(args.out_dir)
    model, tokenizer = load_model(folder)

    # Read the person's files first, so that errors in them show before any work
    everything = not (args.text or args.facts or args.pairs)
    pairs = load_pairs(args.pairs) if args.pairs else []
    facts = load_facts(Path(args.facts or BUNDLED_FACTS).expanduser()) if everything or args.facts else []
    text_ids = encode_text(args.text, column_of(args, model), tokenizer) if args.text else []
    if everything or args.text or args.facts:
        corpus, corpus_name = load_text_of(model, tokenizer, args)

    device, dtype = choose_device(args.precision)
    scorer = Scorer(model.to(device), tokenizer, dtype)
    results = load_results(folder)
    if everything or args.text:
        ids = text_ids or corpus.val.tolist()
        held_out = decode_sentences(tokenizer, ids)
        result = evaluate_text(scorer, ids, "".join(held_out), corpus.train)
        name = args.text or HELD_OUT + corpus_name
        report("text", {"name": name} | result, results, folder)
    if everything or args.facts:
        train_words = words_of(decode_sentences(tokenizer, corpus.train.tolist()))
        result = evaluate_facts(scorer, facts, train_words)
        name = args.facts or f"data/{BUNDLED_FACTS.name}"
        report("facts", {"name": name} | result, results, folder)
    if everything:
        report("samples", evaluate_samples(scorer, held_out, train_words, args.seed), results, folder)
        report("cases", evaluate_cases(scorer, held_out), results, folder)
        print("\nMinimal pairs are not bundled. For RuBLiMP:  python evaluate.py --pairs RussianNLP/rublimp")
    if pairs:
        report("pairs", {"name": args.pairs} | evaluate_pairs(scorer, pairs), results, folder)
    draw(results, folder)
    seconds = time.monotonic() - began
    print(f"\n{seconds:.0f} seconds; the results are in {folder / RESULTS} and {folder / PICTURE}")


if __name__ == "__main__":
    run_script(main)
