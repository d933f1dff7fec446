-- Functions of triggers that are gone: DROP TABLE ... CASCADE takes the triggers alone.
DO $drop$
DECLARE
    function regprocedure;
BEGIN
    FOR function IN
        SELECT oid FROM pg_proc
        WHERE pronamespace = '{literal}'::regnamespace
            AND starts_with(proname, 'embedsync_capture_')
            AND pg_has_role(proowner, 'USAGE')
            AND NOT EXISTS (SELECT FROM pg_trigger WHERE tgfoid = pg_proc.oid)
    LOOP
        EXECUTE format('DROP FUNCTION %s', function);
    END LOOP;
END
$drop$;
