-- The trigger function of all sources, the sequence that counts its failures, and what migrations
-- need to make and drop triggers.
-- {schema} is the schema of embedsync's own tables, quoted; {literal} is the same inside a string.
--
-- Arguments of a trigger: the sidecar's key; the hop, which says what the events' keys are of ('':
-- of the source's own rows); the query that lists these keys (see events.py). Its rows come from
-- the transition tables old_rows and new_rows, or in a row-level trigger from $4 and $5.

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
BEGIN
    IF current_setting('embedsync.tripped', true) = 'on' THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO {schema}.embedsync_inbox (sidecar, kind) VALUES (TG_ARGV[0], 'truncate');
    ELSE
        EXECUTE 'INSERT INTO {literal}.embedsync_inbox (sidecar, kind, hop, source_pk)
            SELECT $1, $2, $3, e.key FROM (' || TG_ARGV[2] || ') AS e(key)'
        USING TG_ARGV[0], CASE TG_ARGV[1] WHEN '' THEN 'row' ELSE 'hop' END,
            nullif(TG_ARGV[1], ''), OLD, NEW;
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
        PERFORM nextval('{literal}.embedsync_missed');
    EXCEPTION WHEN OTHERS THEN
        NULL;
    END;
    RETURN NULL;
END
$function$;

-- Nobody but the owner may attach the function to a table of his own and fill the queue with it.
REVOKE ALL ON FUNCTION {schema}.embedsync_capture() FROM PUBLIC;

-- What a migration locks before it makes or drops triggers. Whoever writes queues behind a lock that
-- waits; so it waits 200 ms at a time, and lets the writers through in between.
CREATE OR REPLACE PROCEDURE {schema}.embedsync_lock(tables text[], mode text)
LANGUAGE plpgsql
AS $procedure$
DECLARE
    theirs CONSTANT text := current_setting('lock_timeout');
    until CONSTANT timestamptz := clock_timestamp() + interval '60 seconds';
BEGIN
    PERFORM set_config('lock_timeout', '200ms', true);
    LOOP
        BEGIN
            EXECUTE format('LOCK TABLE %s IN %s MODE', array_to_string(tables, ', '), mode);
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF clock_timestamp() > until THEN
                RAISE EXCEPTION 'embedsync: % could not be locked for 60 seconds', tables
                    USING ERRCODE = 'lock_not_available', HINT =
                        'A long transaction has written to it. Run migrate again when it has ended.';
            END IF;
        END;
        PERFORM pg_sleep(0.1 + random() * 0.4);
    END LOOP;
    PERFORM set_config('lock_timeout', theirs, true);
END
$procedure$;

-- All triggers of all sidecars; those of partitions come and go with their parents'.
CREATE OR REPLACE VIEW {schema}.embedsync_trigger AS
SELECT
    -- PostgreSQL keeps the arguments as bytes, each closed by a zero.
    convert_from(substring(tgargs FROM 1 FOR position('\x00'::bytea IN tgargs) - 1),
                 getdatabaseencoding()) AS key,
    tgrelid::regclass AS source, tgname AS name, tgargs AS arguments, tgenabled AS enabled,
    tgtype & 1 = 1 AS for_each_row, tgattr AS update_of
FROM pg_trigger
WHERE tgfoid = '{literal}.embedsync_capture()'::regprocedure AND tgparentid = 0;
