import django.db.models.functions.datetime
from django.db import migrations, models

from embedsync.operations import InstallCapture, RequireVector
from embedsync.sql import statement


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        RequireVector(),
        migrations.CreateModel(
            name="SidecarState",
            fields=[
                ("key", models.TextField(primary_key=True, serialize=False)),
                ("fingerprint", models.TextField(db_default="")),
                ("embedder", models.TextField(db_default="")),
                ("former", models.JSONField(db_default=[], default=list)),
                ("served_at", models.DateTimeField(null=True)),
                ("refused", models.TextField(db_default="")),
                ("backfill_after", models.TextField(null=True)),
                ("backfilled_at", models.DateTimeField(null=True)),
                ("missed", models.BigIntegerField(db_default=0)),
                ("missed_seen", models.BigIntegerField(db_default=0)),
                ("missed_until", models.BigIntegerField(db_default=0)),
                ("index_until", models.DateTimeField(null=True)),
                ("index_built", models.JSONField(null=True)),
                ("swept_after", models.TextField(null=True)),
                ("swept_found", models.JSONField(null=True)),
                ("swept_at", models.DateTimeField(null=True)),
            ],
            options={
                "db_table": "embedsync_sidecar",
            },
        ),
        migrations.CreateModel(
            name="Inbox",
            fields=[
                ("seq", models.BigAutoField(primary_key=True, serialize=False)),
                ("sidecar", models.TextField()),
                (
                    "kind",
                    models.TextField(
                        choices=[("row", "Row"), ("hop", "Hop"), ("truncate", "Truncate")]
                    ),
                ),
                ("hop", models.TextField(null=True)),
                ("source_pk", models.TextField(null=True)),
                ("reached", models.TextField(null=True)),
                (
                    "queued_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
            ],
            options={
                "db_table": "embedsync_inbox",
                "indexes": [
                    models.Index(
                        condition=models.Q(("kind", "row"), _negated=True),
                        fields=["sidecar", "seq"],
                        name="embedsync_inbox_not_row",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Ledger",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "sidecar",
                        "source_pk",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("sidecar", models.TextField()),
                ("source_pk", models.TextField(db_collation="C")),
                ("token", models.UUIDField(null=True)),
                ("dirty", models.BooleanField(db_default=False)),
                ("run_at", models.DateTimeField(null=True)),
                ("attempts", models.IntegerField(db_default=0)),
                ("queued_at", models.DateTimeField()),
                ("worker", models.TextField(db_default="")),
                ("last_error", models.TextField(db_default="")),
            ],
            options={
                "db_table": "embedsync_ledger",
                "indexes": [
                    models.Index(
                        condition=models.Q(("run_at__isnull", False)),
                        fields=["sidecar", "run_at"],
                        name="embedsync_ledger_due",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="LedgerRow",
            fields=[
                ("key", models.TextField(primary_key=True, serialize=False)),
                ("sidecar", models.TextField()),
                ("source_pk", models.TextField(verbose_name="row")),
                ("token", models.UUIDField(null=True)),
                ("dirty", models.BooleanField(verbose_name="changed since")),
                ("run_at", models.DateTimeField(null=True, verbose_name="due")),
                ("attempts", models.IntegerField()),
                ("queued_at", models.DateTimeField(verbose_name="queued")),
                ("worker", models.TextField()),
                ("last_error", models.TextField(verbose_name="error")),
            ],
            options={
                "db_table": "embedsync_ledger_row",
                "managed": False,
            },
        ),
        migrations.CreateModel(
            name="Minute",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "sidecar",
                        "minute",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("sidecar", models.TextField()),
                ("minute", models.DateTimeField()),
                ("embedded", models.BigIntegerField(db_default=0)),
                ("unchanged", models.BigIntegerField(db_default=0)),
                ("failed", models.BigIntegerField(db_default=0)),
                ("waiting", models.BigIntegerField(db_default=0)),
            ],
            options={
                "db_table": "embedsync_minute",
            },
        ),
        migrations.CreateModel(
            name="EmbedderMinute",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "embedder",
                        "minute",
                        blank=True,
                        editable=False,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("embedder", models.TextField()),
                ("minute", models.DateTimeField()),
                ("calls", models.BigIntegerField(db_default=0)),
                ("tokens", models.BigIntegerField(db_default=0)),
                ("granted_rows", models.BigIntegerField(db_default=0)),
                ("granted_tokens", models.BigIntegerField(db_default=0)),
            ],
            options={
                "db_table": "embedsync_embedder_minute",
            },
        ),
        migrations.CreateModel(
            name="WorkerState",
            fields=[
                ("name", models.TextField(primary_key=True, serialize=False)),
                (
                    "started_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "seen_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                ("doing", models.TextField(db_default="")),
                ("settled", models.BigIntegerField(db_default=0)),
                ("serves", models.JSONField(default=dict)),
                ("errors", models.JSONField(default=dict)),
            ],
            options={
                "db_table": "embedsync_worker",
            },
        ),
        migrations.RunSQL(statement("storage"), migrations.RunSQL.noop),
        migrations.RunSQL(statement("ledger_row"), "DROP VIEW embedsync_ledger_row"),
        InstallCapture(),
    ]
