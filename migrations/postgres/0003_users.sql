-- Which user asked, where it was a user and not a key.

ALTER TABLE holds ADD COLUMN user_id UUID;
ALTER TABLE usage_records ADD COLUMN user_id UUID;
