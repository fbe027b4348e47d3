-- Open holds are few, and each is written, changed and deleted within seconds: reading all of them
-- now and then (recovery, an operator's look) is cheaper than keeping two indexes with every
-- request. Each index is a page more in each of its two commits.

DROP INDEX holds_account;
DROP INDEX holds_lease;
