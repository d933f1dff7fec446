"""What the tests that work with books share."""

from django.db import connection
from django.utils import timezone

from embedsync.models import Ledger
from tests.library.models import Book

BookEmbedding = Book.embedding.model
KEY = "library.bookembedding"


def execute(sql, params=None):
    """Run raw SQL, as an application might."""
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def make_due():
    """Let the time of all retries and leases come."""
    Ledger.objects.filter(run_at__isnull=False).update(run_at=timezone.now())
