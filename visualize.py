"""Show how the trained model works, on one page:  python visualize.py "Столица Франции —"

Writes visualization.html to out_dir: one file with the model in it. It opens in any browser, offline, runs
the model on what you type, and shows every step. It also shows averages, measured on the model's own text.
If the run kept snapshots of its weights, a slider goes back to them.
With --png FILE, draws the attention weights of all heads on the prompt instead.
"""

from pathlib import Path

from dataset import load_text_of
from interpretability.attention_map import attention_png
from interpretability.measurements import measure
from interpretability.page import make_page
from interpretability.snapshots import last_step_of, snapshot_losses
from support.checkpoint import load_model, snapshot_paths
from support.cli import atomic_write, make_parser, parse_args, run_script

PROMPT = "Столица Франции — город"
PAGE = "visualization.html"


def write_page(html: str, path: Path) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(html, encoding="utf-8")
    print(f"saved {path}, {path.stat().st_size / 1e6:.1f} MB: open it in a browser")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("prompt", nargs="?", default=PROMPT, help=f"the text the page opens with [{PROMPT}]")
    parser.add_argument("--png", metavar="FILE", type=Path, help="draw the attention on it into FILE instead")
    args = parse_args(parser)
    out_dir = Path(args.out_dir)
    model, tokenizer = load_model(out_dir)

    if args.png:
        attention_png(model, tokenizer, args.prompt, args.png)
        print(f"saved {args.png}")
        return
    corpus, _ = load_text_of(model, tokenizer, args)
    measurements = measure(model, tokenizer, corpus.train, corpus.val, out_dir)
    snapshots = snapshot_paths(out_dir)
    if snapshots:
        last_step = last_step_of(measurements["training"]["log"], snapshots)
        measurements["snapshots"] = snapshot_losses(
            model, snapshots, last_step, corpus.train, corpus.val, args.eval_windows
        )
    write_page(make_page(model, tokenizer, measurements, args.prompt, snapshots), out_dir / PAGE)


if __name__ == "__main__":
    run_script(main)
