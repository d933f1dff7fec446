    INSERT INTO {schema}.embedsync_inbox (sidecar, kind, hop, source_pk)
    SELECT TG_ARGV[0], CASE TG_ARGV[1] WHEN '' THEN 'row' ELSE 'hop' END,
        nullif(TG_ARGV[1], ''), e.key
    FROM ({keys}) AS e(key);
