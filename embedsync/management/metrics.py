"""The port on which a worker tells Prometheus what it does."""

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError


def serve_metrics(port: int) -> None:
    """Serve the counters of this process, or say why that cannot be."""
    try:
        from embedsync.metrics import serve

        serve(port)
    except ImproperlyConfigured as error:
        raise CommandError(f"--metrics-port: {error}") from error
    except OSError as error:
        raise CommandError(f"--metrics-port: {port} cannot be had: {error.strerror}") from error
