    INSERT INTO {schema}.embedsync_inbox (sidecar, kind) VALUES ({sidecar}, 'truncate');
