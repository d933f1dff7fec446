    IF {changed} THEN
{insert}    END IF;
