    INSERT INTO {schema}.embedsync_inbox (sidecar, kind, hop, source_pk)
    SELECT {origin}, e.key
    FROM ({keys}) AS e(key);
