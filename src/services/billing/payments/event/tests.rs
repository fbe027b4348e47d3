//! What events say, by Stripe’s own examples.
