"""The command ``genre-predict``: genres of one movie, a CSV file or a folder of posters.

Nothing heavy is imported before the arguments have been checked.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence

from genre_lightning.errors import UserError
from genre_lightning.garbage import freeze_imports
from genre_lightning.predicting.arguments import parse_card, parse_export, parse_predict
from genre_lightning.runs.ckpt_path import best_checkpoint
from genre_lightning.runs.quoting import shell_command


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        0 on success; 1 for an error that the user can fix, with a message on standard error; 130
        for Ctrl-C. Exits with 2 if the arguments are invalid.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # escape what its encoding lacks
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        if arguments[:1] == ["export"]:
            return _export(arguments[1:])
        if arguments[:1] == ["card"]:
            return _card(arguments[1:])
        return _predict(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader has closed the pipe. Without this, Python would print an error at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _predict(arguments: Sequence[str]) -> int:
    options = parse_predict(arguments)
    # For one movie, starting the GPU takes longer than predicting on the CPU.
    device = options.device or ("cpu" if options.columns else "auto")

    with freeze_imports():
        import torch

        from genre_lightning.predicting.predictor import GenrePredictor

        # One movie is done before a second thread has started; the predictor spreads many over
        # threads of its own.
        torch.set_num_threads(1)
        predictor = GenrePredictor.from_checkpoint(
            best_checkpoint(options.checkpoint), device, options.workers, options.encoder
        )
    movie_asker = None
    if options.ask is not None:
        from genre_lightning.predicting.asked import MovieAsker

        movie_asker = MovieAsker(predictor, options.ask, options.ask_url, options.api_key_env)
    if options.columns:
        from genre_lightning.predicting.one import predict_one

        predict_one(predictor, options, movie_asker)
    else:
        from genre_lightning.predicting.many import predict_csv, predict_folder

        if options.csv is not None:
            predict_csv(predictor, options.csv, options.out, movie_asker)
        elif options.folder is not None:
            predict_folder(predictor, options.folder, options.out, options.json, movie_asker)
    return 0


def _export(arguments: Sequence[str]) -> int:
    options = parse_export(arguments)
    checkpoint = best_checkpoint(options.checkpoint)

    from genre_lightning.inputs.encoders.table import trust_encoders

    trust_encoders(options.encoder)
    if options.weights is not None:
        from genre_lightning.predicting.weights import export_weights

        export_weights(checkpoint, options.weights)
        before, after = checkpoint.stat().st_size, options.weights.stat().st_size
        print(f"{shell_command(options.weights)} ({after / 2**20:.1f} MiB of {before / 2**20:.1f})")
    if options.onnx is not None:
        from genre_lightning.checkpoint.model import load_model
        from genre_lightning.predicting.export import export_onnx

        exported = export_onnx(load_model(checkpoint), options.onnx)
        print(f"{shell_command(exported.onnx)} ({exported.onnx.stat().st_size / 2**20:.1f} MiB)")
        for path in exported.extra_files:
            print(shell_command(path))
        print(
            f"checked on {exported.movies} movies: logits differ from PyTorch's "
            f"by {exported.difference:.1e} at most"
        )
    if options.out is not None:
        from genre_lightning.predicting.folder import export_folder

        names = export_folder(checkpoint, options.out, options.scores, options.licence)
        for name in names:
            print(shell_command(options.out / name))
    return 0


def _card(arguments: Sequence[str]) -> int:
    options = parse_card(arguments)
    checkpoint = best_checkpoint(options.checkpoint)

    from genre_lightning.inputs.encoders.table import trust_encoders
    from genre_lightning.predicting.model_card import model_card, write_model_card

    trust_encoders(options.encoder)
    card = model_card(checkpoint, options.scores, options.licence)
    if options.out is None:
        sys.stdout.write(card)
    else:
        write_model_card(options.out, card)
        print(shell_command(options.out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
