"""`llm-arch fit`: train, measure before and after, save."""

from __future__ import annotations

from pathlib import Path

from llm_arch.cli import configs, fit_command, output

HELP = """usage: llm-arch fit -c CONFIG [-c OVERLAY …] [--KEY VALUE …]

Train a model, measure it before and after on the test split, and save it.

  llm-arch fit -c task/text_classification --data.train A.csv --output runs/mine

run
  -c, --config CONFIG            a YAML file or a shipped config; several stack, later ones win
  --output DIR                   where everything goes (default: runs/<config>/<time>)
  --overwrite                    replace an earlier run in DIR
  --resume auto|PATH             go on from DIR's last checkpoint (or start fresh), or from PATH
  --before true|false            measure before training too (default: true)
  --start DIR                    begin with this model's labels and its head's weights too
  --teacher DIR                  learn from this model too, with -c compress/distillation
  --trust MODULE                 allow a module of your own that such a model was trained with
  --seed_everything N            seed of order, dropout and new weights (default: 0)
  --print_config                 print the whole configuration and stop

data
  --data.train FILE              .csv, .tsv, .jsonl, .parquet, hub:NAME:SPLIT, embedded: smart_home,
                                 sample:NAME, gettext:de, chatterbot:english, stdlib:docstrings …;
                                 task/ner reads any other file as CoNLL, task/translation takes
                                 two parallel files, as A.en,A.de
  --data.validation FILE         otherwise cut off the training rows
  --data.test FILE               otherwise the validation rows are measured
  --data.transfer FILE           more training rows, as a teacher labelled them
  --data.text_column NAME        column of the text (default: text)
  --data.text_pair_column NAME   column of the second text, for pairs
  --data.label_column NAME       column of the label (default: label)
  --data.label_delimiter TEXT    what separates several labels in a cell
  --data.max_length N            longest sequence in tokens (default: 128)
  --data.batch_size N            rows a micro-batch (default: 32)
  --data.max_tokens N            tokens a micro-batch at most
  --data.on_bad_row error|skip   stop at a row that can't be used, or list it in bad_rows.jsonl
                                 (default: error)
  --data.max_bad_rows N          rows, or a share below 1, that may be left out; without it all
  --data.language LANG           language of the embedded set (default: en)

model
  --model.backbone NAME          directory, hub id, package:NAME/FOLDER, tiny:bert, OUTPUT/model
  --model.freeze WHAT            none, backbone, embeddings, or a number of layers (default: none)
  --model.dropout P              dropout everywhere in the backbone
  --model.pooling KIND           first, last, mean or max
  --model.keep_layers N          begin with so many of its layers, or those of a list: [0,2,4]
  --model.learning_rate X        of the default AdamW
  --model.optimizer CLASS        another optimizer, such as SGD or llm_arch.optim.Muon; then
                                 --model.optimizer.lr and so on
  --model.lr_scheduler CLASS     Linear, Cosine, Constant or WarmupStableDecay; then
                                 --model.lr_scheduler.warmup …
  --model.head.KEY VALUE         arguments of the head: class_weights, label_smoothing, binary,
                                 metrics, follow, max_new_tokens …

trainer
  --trainer.max_epochs N         --trainer.precision P, --trainer.devices N,
                                 --trainer.accumulate_grad_batches N, and all of lightning.Trainer

Every key, with its documentation: llm-arch fit --help-all
Arguments of a class of your own:  llm-arch fit --model.head.help my_module.MyHead
Shipped configs:
{configs}
"""


def run(arguments: list[str]) -> None:
    """Run `llm-arch fit`."""
    if "-h" in arguments or "--help" in arguments:
        print(HELP.format(configs="\n".join(f"  -c {name}" for name in configs.names())))
        return
    arguments, trusted = fit_command.take_trusted(arguments)
    fit_command.trust(trusted)
    cli, names = fit_command.read(arguments)
    from llm_arch.cli.fit_first import FOLDER, fine_tune_first
    from llm_arch.cli.fit_run import FitRun

    given = cli.config
    where = output.choose(given.output, names[0] if names else "fit")
    fine_tune_first(cli, where)
    besides = [FOLDER] if given.start == str(where / FOLDER) else []
    recipe = [name for name in names if Path(name).parent.name == "compress"]
    FitRun(
        cli,
        where,
        overwrite=given.overwrite,
        resume=given.resume,
        before=given.before,
        recipe=recipe,
        besides=besides,
    ).run()
