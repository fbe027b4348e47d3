-- Which user asked, where it was a user and not a key.

ALTER TABLE holds ADD COLUMN user_id TEXT;
ALTER TABLE usage_records ADD COLUMN user_id TEXT;
