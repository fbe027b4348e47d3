-- Users who were removed from an account and have been made members of none since: a login of
-- theirs makes no account. Those of before are known by the audit log.

CREATE TABLE removed_members (
    user_id     TEXT PRIMARY KEY,
    removed_at  TEXT NOT NULL
) STRICT;

INSERT INTO removed_members (user_id, removed_at)
SELECT a.subject, max(a.created_at) FROM audit_log a
 WHERE a.action = 'member.remove'
   AND NOT EXISTS (SELECT 1 FROM members m WHERE m.user_id = a.subject)
 GROUP BY a.subject;
