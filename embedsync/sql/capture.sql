-- The one trigger function of all sources, and the sequence that counts its failures.
-- {schema} is the schema of embedsync's own tables, quoted.
--
-- Arguments of a trigger: the sidecar's key, the source's primary key column, the watched columns.
-- Transition tables are named old_rows and new_rows (see trigger.sql).

CREATE SEQUENCE IF NOT EXISTS {schema}.embedsync_missed;

CREATE OR REPLACE FUNCTION {schema}.embedsync_capture() RETURNS trigger
LANGUAGE plpgsql
-- The application's role needs no right on the queue, and its search_path may be empty or hostile.
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- A locked queue costs the application 200 ms, once a transaction: see "tripped" below.
SET lock_timeout = '200ms'
-- A key must read the same whatever the session's settings are.
SET "DateStyle" = 'ISO, YMD'
SET "TimeZone" = 'UTC'
AS $function$
DECLARE
    sidecar CONSTANT text := TG_ARGV[0];
    pk CONSTANT text := TG_ARGV[1];
    old_row text;
    new_row text;
BEGIN
    IF current_setting('embedsync.tripped', true) = 'on' THEN
        RETURN NULL;
    END IF;

    IF TG_OP = 'INSERT' THEN
        EXECUTE format(
            'INSERT INTO {schema}.embedsync_inbox (sidecar, kind, source_pk)
             SELECT $1, ''row'', %1$I::text FROM new_rows', pk) USING sidecar;

    ELSIF TG_OP = 'DELETE' THEN
        EXECUTE format(
            'INSERT INTO {schema}.embedsync_inbox (sidecar, kind, source_pk)
             SELECT $1, ''row'', %1$I::text FROM old_rows', pk) USING sidecar;

    ELSIF TG_OP = 'UPDATE' THEN
        SELECT string_agg(format('o.%I', c), ', '), string_agg(format('n.%I', c), ', ')
        INTO old_row, new_row FROM unnest(TG_ARGV[2:]) AS c;
        -- FULL JOIN: a changed primary key gives the old key and the new one.
        -- *<> compares the stored bytes, so it works for json and vector columns, which have no
        -- equality, and sees a change of case under a case-insensitive collation.
        EXECUTE format(
            'INSERT INTO {schema}.embedsync_inbox (sidecar, kind, source_pk)
             SELECT $1, ''row'', coalesce(n.%1$I, o.%1$I)::text
             FROM old_rows o FULL JOIN new_rows n ON n.%1$I = o.%1$I
             WHERE n.%1$I IS NULL OR o.%1$I IS NULL
                OR ROW(%2$s)::record OPERATOR(pg_catalog.*<>) ROW(%3$s)::record',
            pk, old_row, new_row) USING sidecar;

    ELSE
        INSERT INTO {schema}.embedsync_inbox (sidecar, kind) VALUES (sidecar, 'truncate');
    END IF;
    RETURN NULL;

EXCEPTION WHEN OTHERS THEN
    -- The application's write goes on, whatever is wrong with the queue. No second wait in this
    -- transaction; and a mark that no rollback takes back tells workers to compare all rows.
    PERFORM set_config('embedsync.tripped', 'on', true);
    RAISE WARNING 'embedsync: changes of %.% were not captured: %',
        TG_TABLE_SCHEMA, TG_TABLE_NAME, SQLERRM
        USING HINT = 'Workers will compare the whole table with its vectors.';
    BEGIN
        PERFORM nextval('{schema}.embedsync_missed');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$function$;

-- Nobody but the owner may attach the function to a table of his own and fill the queue with it.
REVOKE ALL ON FUNCTION {schema}.embedsync_capture() FROM PUBLIC;
