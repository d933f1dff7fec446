-- The inbox first: a worker that is moving a row from inbox to ledger has committed by then.
DELETE FROM {schema}.embedsync_inbox WHERE sidecar = {key};
DELETE FROM {schema}.embedsync_ledger WHERE sidecar = {key};
DELETE FROM {schema}.embedsync_sidecar WHERE key = {key};
