CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table}
{referencing}FOR EACH {level}
-- Always true. It makes the trigger depend on the sidecar's table, so that DROP TABLE ... CASCADE,
-- which is Django's, takes the trigger along.
WHEN ({sidecar}::regclass IS NOT NULL)
EXECUTE FUNCTION {schema}.{function}({arguments});
