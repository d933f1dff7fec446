"""``manage.py embed_export``: files of a model for OnnxEmbedder, which needs no torch."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError

from embedsync.embedders import EmbedderError, get_embedder
from embedsync.embedders.export import ExportError, export
from embedsync.embedders.onnx import FLOAT32, INT8
from embedsync.embedders.sentence_transformers import SentenceTransformerEmbedder


class Command(BaseCommand):
    help = (
        "Writes the model of an embedder to a directory for OnnxEmbedder, once its vectors are"
        " proven to be the same."
    )
    # An alias for the files that are still to be made is an error to the checks.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        add = parser.add_argument
        add("alias", help="of EMBEDSYNC_EMBEDDERS, a SentenceTransformerEmbedder")
        add("directory", type=Path, help="to be made")
        add("--quantise", choices=[INT8], help="twice as fast, and a space of its own")
        add("--sample", type=int, default=64, metavar="N", help="texts to compare (default: 64)")
        add("--least", type=float, metavar="COSINE", help="default: 0.9999, in int8 0.99")
        add("--force", action="store_true", help="replace the directory if it exists")

    def handle(self, *args: Any, **options: Any) -> None:
        alias, directory = options["alias"], options["directory"]
        try:
            embedder = get_embedder(alias)
            if not isinstance(embedder, SentenceTransformerEmbedder):
                raise ExportError(
                    f"The embedder {alias!r} is no SentenceTransformerEmbedder: name one."
                )
            made = export(
                embedder,
                directory,
                precision=options["quantise"] or FLOAT32,
                sample=options["sample"],
                least=options["least"],
                force=options["force"],
            )
        except (EmbedderError, ExportError, ImproperlyConfigured, OSError) as error:
            raise CommandError(str(error)) from error
        of = "the least" if made.precision == FLOAT32 else "the mean"
        self.stdout.write(
            f"{directory}: {made.model} in {made.precision}, {made.dimensions} dimensions, cosine"
            f" {made.cosine:.6f} to the model ({of} of {options['sample']} texts and some odd ones)"
        )
