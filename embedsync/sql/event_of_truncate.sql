    INSERT INTO {schema}.embedsync_inbox (sidecar, kind) VALUES (TG_ARGV[0], 'truncate');
