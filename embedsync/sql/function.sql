-- The function of a trigger, with what every one of them has around its body. Not one for all that
-- runs a query it is given: that would be planned anew at each call, which costs a single-row
-- statement more than all the rest. {literal} is the schema inside a string.

CREATE OR REPLACE FUNCTION {schema}.{name}() RETURNS trigger
LANGUAGE plpgsql
-- The application's role needs no right on the queue, and its search_path may be empty or hostile.
SECURITY DEFINER
SET search_path = pg_catalog, pg_temp
-- A locked queue costs the application 200 ms, once a transaction: see "tripped" below.
SET lock_timeout = '200ms'
{settings}AS $function$
BEGIN
    -- The second is the pause switch. In WHEN it would be parsed anew for each statement.
    IF current_setting('embedsync.tripped', true) = 'on'
        OR current_setting('embedsync.capture', true) = 'off'
    THEN
        RETURN NULL;
    END IF;
{body}    RETURN NULL;

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
    -- A column has another type than when this session planned the body: the next time it will fit.
    IF SQLSTATE = '42804' THEN
        DISCARD PLANS;
    END IF;
    RETURN NULL;
END
$function$;

-- Nobody but the owner may attach the function to a table of his own and fill the queue with it.
REVOKE ALL ON FUNCTION {schema}.{name}() FROM PUBLIC;
