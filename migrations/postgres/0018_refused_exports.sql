-- An export that is parked with no time of a first attempt has surely not arrived: it is planned
-- anew by a retry, perhaps for another customer. Until now that time was kept when the only answer
-- was a refusal. What Stripe took and does not count, and what is in doubt, has another reason.

UPDATE exports SET first_sent_at = NULL
 WHERE state = 'parked' AND attempts = 1 AND refusals = 1
   AND reason <> 'in_doubt' AND reason NOT LIKE 'stripe %';
