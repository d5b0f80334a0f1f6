"""Train shoal/demo-chat, the small chat model that ships with Shoal.

The script generates synthetic dialogues, trains a byte-level BPE tokenizer on them, trains a Llama
of six million parameters, writes a Hugging Face checkpoint and judges it on held-out dialogues
(their names, numbers, words and functions never occur in training) and on questions written by
hand. It resumes from the training state in --state if there is one, or goes on from the weights and
the tokenizer of --start-from, and can be stopped at any time: the checkpoint folder holds what
was learned so far.

Examples:
  python scripts/train_demo_model.py                        # more than an hour on a core
  python scripts/train_demo_model.py --steps 12000 --batch-tokens 65536 --num-workers 14 --long-rows
                                    # minutes on a GPU: how the weights that ship were made
  python scripts/train_demo_model.py --start-from models/demo/checkpoint --minutes 60
  python scripts/train_demo_model.py --minutes 5 --output /tmp/demo --state /tmp/demo-state
  python scripts/train_demo_model.py --eval-only            # judge the checkpoint that is there
"""

import argparse
import itertools
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging as transformers_logging

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from models.demo.batches import render
from models.demo.dialogues import Dialogue, generate
from models.demo.evaluation import Score, count_exact, evaluate, held_out_dialogues
from models.demo.handwritten import handwritten
from models.demo.initialization import initialize_for_copying
from models.demo.tokenizer import train_tokenizer
from models.demo.training import Trainer, TrainingConfig, model_config, train

CHECKPOINT = Path(__file__).resolve().parents[1] / "models" / "demo" / "checkpoint"
MODEL_CARD = CHECKPOINT.with_name("model_card.md")
VOCAB_SIZE = 2048
TOKENIZER_DIALOGUES = 8000
PROBES_PER_SUITE = 12
STATE_NAME = "state.pt"
SHOWN_STEPS = 10


def parse_arguments() -> argparse.Namespace:
    defaults = TrainingConfig()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=CHECKPOINT, help="checkpoint folder")
    parser.add_argument(
        "--state", type=Path, default=Path("demo-model-state"), help="folder of the training state"
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=defaults.steps,
        help="batches to train on (default %(default)s)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=defaults.minutes,
        help="training ends after this long even if steps are left (default %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="seed of data and weights")
    parser.add_argument("--peak-lr", type=float, default=defaults.peak_lr)
    parser.add_argument("--embedding-lr", type=float, default=defaults.embedding_lr)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16"), default="bfloat16", help="of the checkpoint"
    )
    parser.add_argument(
        "--start-from", type=Path, help="checkpoint whose weights and tokenizer to start from"
    )
    parser.add_argument("--tokenizer", type=Path, help="checkpoint whose tokenizer to use")
    parser.add_argument(
        "--batch-tokens",
        type=int,
        default=defaults.batch_tokens,
        help="tokens of a batch, padding included (default %(default)s)",
    )
    parser.add_argument(
        "--num-workers",
        type=int,
        default=defaults.num_workers,
        help="processes that draw dialogues ahead (default: none)",
    )
    parser.add_argument(
        "--long-rows",
        action="store_true",
        help="the curriculum with rows of up to 1,280 tokens, for a GPU",
    )
    parser.add_argument("--fresh", action="store_true", help="ignore an earlier training state")
    parser.add_argument("--no-eval", action="store_true", help="train, do not judge")
    parser.add_argument("--eval-only", action="store_true", help="judge --output, do not train")
    parser.add_argument("--eval-size", type=int, default=50, help="held-out dialogues per suite")
    parser.add_argument("--show-wrong", action="store_true", help="print the answers that differ")
    parser.add_argument("--pause-s", type=float, default=150.0, help="seconds between probes")
    return parser.parse_args()


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on rendered dialogues of the training split."""
    blank = train_tokenizer([], vocab_size=300)
    stream = generate(seed, held_out=False, max_length=1.5)
    texts = (
        re.sub(r"<\|\w+\|>", "", render(blank, dialogue))
        for dialogue in itertools.islice(stream, TOKENIZER_DIALOGUES)
    )
    return train_tokenizer(texts, vocab_size=VOCAB_SIZE)


def write_checkpoint(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, dtype: torch.dtype
) -> None:
    """Write what transformers needs; the weights are cast to `dtype`."""
    state = {name: tensor.detach().to(dtype) for name, tensor in model.state_dict().items()}
    copy = LlamaForCausalLM(model.config).to(dtype)
    copy.load_state_dict(state)
    copy.config.architectures = ["LlamaForCausalLM"]
    copy.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        do_sample=False,
    )
    copy.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shutil.copyfile(MODEL_CARD, folder / "README.md")


def start(arguments: argparse.Namespace, config: TrainingConfig) -> Trainer:
    """A trainer from the training state, from a checkpoint, or from nothing."""
    torch.manual_seed(config.seed)
    arguments.state.mkdir(parents=True, exist_ok=True)
    state = arguments.state / STATE_NAME
    resumes = state.exists() and not arguments.fresh
    if resumes:
        tokenizer = AutoTokenizer.from_pretrained(arguments.state)
    elif arguments.start_from or arguments.tokenizer:
        tokenizer = AutoTokenizer.from_pretrained(arguments.start_from or arguments.tokenizer)
    else:
        tokenizer = make_tokenizer(config.seed)
    tokenizer.save_pretrained(arguments.state)
    if arguments.start_from:
        model = LlamaForCausalLM.from_pretrained(arguments.start_from, dtype=torch.float32)
    else:
        model = LlamaForCausalLM(model_config(len(tokenizer), tokenizer))
        initialize_for_copying(model)
    trainer = Trainer(model.to(arguments.device), tokenizer, config)
    if resumes:
        trainer.load(state)
        print(f"resumed at step {trainer.step}")
    return trainer


def run_training(arguments: argparse.Namespace) -> None:
    """Train, probing and writing the checkpoint every few minutes."""
    config = TrainingConfig(
        seed=arguments.seed,
        steps=arguments.steps,
        minutes=arguments.minutes,
        peak_lr=arguments.peak_lr,
        embedding_lr=arguments.embedding_lr,
        continues=arguments.start_from is not None,
        batch_tokens=arguments.batch_tokens,
        num_workers=arguments.num_workers,
        has_long_rows=arguments.long_rows,
    )
    trainer = start(arguments, config)
    model, tokenizer = trainer.model, trainer.tokenizer
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens in the vocabulary")
    probes = held_out_dialogues(PROBES_PER_SUITE, seed=config.seed + 77)
    bar = tqdm(total=100, bar_format="{l_bar}{bar}| {elapsed}{postfix}", mininterval=5.0)
    smooth = 0.0

    def on_step(loss: torch.Tensor) -> None:
        nonlocal smooth
        if trainer.step % SHOWN_STEPS:
            return  # reading the loss would wait for a GPU
        smooth = loss.item() if not smooth else 0.9 * smooth + 0.1 * loss.item()
        bar.n = min(100, round(100 * trainer.progress, 1))
        speed = trainer.num_tokens / trainer.elapsed_s
        bar.set_postfix_str(f"step {trainer.step} loss {smooth:.3f} {speed:.0f} tok/s")

    def on_pause() -> None:
        counts = {name: count_exact(model, tokenizer, suite) for name, suite in probes.items()}
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        bar.write(f"step {trainer.step} loss {smooth:.3f} of {PROBES_PER_SUITE}: {listed}")
        trainer.save(arguments.state / STATE_NAME)
        write_checkpoint(model, tokenizer, arguments.output, getattr(torch, arguments.dtype))

    train(trainer, on_step=on_step, on_pause=on_pause, pause_s=arguments.pause_s)
    bar.close()


def print_scores(title: str, scores: dict[str, Score]) -> None:
    print(f"\n{title}\n{'suite':<22}{'tests':>6}{'exact':>8}{'value':>8}{'stops':>8}")
    for name, score in scores.items():
        shares = (score.exact, score.with_value, score.stopped)
        print(f"{name:<22}{score.total:>6}" + "".join(f"{n / score.total:>8.0%}" for n in shares))


def run_evaluation(arguments: argparse.Namespace) -> None:
    """Judge the written checkpoint as transformers loads it, in float32 and in bfloat16."""
    tests = {**held_out_dialogues(arguments.eval_size), "written by hand": handwritten()}
    tokenizer = AutoTokenizer.from_pretrained(arguments.output)
    report = {}
    for dtype in ("float32", "bfloat16"):
        model = AutoModelForCausalLM.from_pretrained(arguments.output, dtype=dtype)
        bar = tqdm(total=sum(map(len, tests.values())), desc=dtype, mininterval=5.0)

        def on_answer(name: str, dialogue: Dialogue, text: str, bar: tqdm = bar) -> None:
            bar.update()
            is_wrong = any(value not in text for value in dialogue.values)
            if arguments.show_wrong and is_wrong:
                question = dialogue.messages[-2]["content"][-200:]
                bar.write(f"[{name}] {question!r}\n  want {dialogue.values}\n  got  {text!r}")

        scores = evaluate(model.to(arguments.device), tokenizer, tests, on_answer=on_answer)
        bar.close()
        print_scores(dtype, scores)
        report[dtype] = {name: asdict(score) for name, score in scores.items()}
    (arguments.output / "evaluation.json").write_text(json.dumps(report, indent=1) + "\n")


def main() -> None:
    arguments = parse_arguments()
    transformers_logging.set_verbosity_error()
    if not arguments.eval_only:
        run_training(arguments)
    if not arguments.no_eval:
        run_evaluation(arguments)


if __name__ == "__main__":
    main()
