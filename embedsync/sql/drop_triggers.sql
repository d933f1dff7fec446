-- First what a worker's fill locks first: DROP TRIGGER shuts everybody out of the source. The sidecar
-- is forgotten after the migration, if no other trigger has come to serve it.
SELECT FROM {schema}.embedsync_sidecar WHERE key = {key} FOR UPDATE;

-- Found by their key, because their tables may have been renamed, and the paths that led to them.
DO $drop$
DECLARE
    trigger record;
    tables CONSTANT text[] := ARRAY(
        SELECT DISTINCT source::text FROM {schema}.embedsync_trigger WHERE key = {key});
BEGIN
    IF tables <> '{}' THEN
        CALL {schema}.embedsync_lock(tables, 'ACCESS EXCLUSIVE');
    END IF;
    FOR trigger IN SELECT name, source FROM {schema}.embedsync_trigger WHERE key = {key} LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', trigger.name, trigger.source);
    END LOOP;
END
$drop$;
