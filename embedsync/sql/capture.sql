-- The sequence that counts failures of triggers, and what migrations need to make and drop them.
-- {schema} is the schema of embedsync's own tables, quoted; {literal} is the same inside a string.
--
-- Arguments of a trigger, by which it is found again: the sidecar's key; the hop, which says what the
-- events' keys are of ('': of the source's own rows). What it does stands in its function
-- (function.sql, events.py).

CREATE SEQUENCE IF NOT EXISTS {schema}.embedsync_missed;

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
    -- PostgreSQL keeps the arguments as bytes, each closed by a zero. Other triggers may have none,
    -- and may be looked at before they are sorted out.
    convert_from(substring(tgargs FROM 1 FOR nullif(position('\x00'::bytea IN tgargs), 0) - 1),
                 getdatabaseencoding()) AS key,
    tgrelid::regclass AS source, tgname AS name, tgargs AS arguments, tgenabled AS enabled,
    tgtype & 1 = 1 AS for_each_row, proname AS function
FROM pg_trigger JOIN pg_proc ON pg_proc.oid = tgfoid
WHERE pronamespace = '{literal}'::regnamespace AND tgparentid = 0
    AND starts_with(proname, 'embedsync_capture_');
-- It says what the catalogs say to everybody.
GRANT SELECT ON {schema}.embedsync_trigger TO PUBLIC;
