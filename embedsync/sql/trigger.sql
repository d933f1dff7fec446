CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table}
{referencing}FOR EACH {level}
-- The first part is always true. It makes the trigger depend on the sidecar's table, so that
-- DROP TABLE ... CASCADE, which is Django's, takes the trigger along. The second is the pause switch.
WHEN ({sidecar}::regclass IS NOT NULL
      AND coalesce(current_setting('embedsync.capture', true), 'on') <> 'off')
EXECUTE FUNCTION {schema}.{function}({arguments});
