//! Who calls: an API key or a user's access token becomes a [`Principal`].
//!
//! Invariants: a key is known by its SHA-256 only; a typing error is refused by the key's checksum
//! without asking the store; what cannot be told because the store or the auth server does not
//! answer is a 503, never a 401; a caller who is known goes on without them for a bounded time.

mod failures;
mod jwks;
pub mod tokens;
mod uses;

use crate::config::IdentityConfig;
use crate::error::Error;
use crate::models::account::{Account, AccountStatus};
use crate::models::identity::Role;
use crate::models::ids::{AccountId, ApiKeyId, UserId};
use crate::models::key::{ApiKey, KeyBudget};
use crate::models::ledger::sha256_hex;
use crate::models::limits::{LimitsInForce, RateLimits};
use crate::models::timestamp::Timestamp;
use crate::services::catalog::Catalog;
use crate::services::directory::{SignupTerms, sign_up};
use crate::services::ledger::Away;
use crate::services::metrics::IdentityMetrics;
use crate::services::secret::is_well_formed;
use crate::store::{Funds, Store, StoreError, within};
use failures::Failures;
use moka::{future, sync};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokens::Tokens;
use tokio_util::sync::CancellationToken;
use uses::Uses;

/// Who calls, and the account that pays.
#[derive(Clone, Debug)]
pub struct Principal {
    pub account_id: AccountId,
    /// Of the account.
    pub plan: Option<String>,
    /// The account's own, which go before the plan's.
    pub rates: RateLimits,
    pub role: Role,
    pub caller: Caller,
    /// The caller's key has a budget of its own.
    pub has_key_limits: bool,
    /// What there was when the store was last asked for the caller: an outage goes by it.
    pub funds: Funds,
}

#[derive(Clone, Debug)]
pub enum Caller {
    Key(Arc<ApiKey>),
    User(UserId),
}

pub struct Auth {
    store: Arc<dyn Store>,
    users: Option<Users>,
    /// What was told lately, also that there is nobody. By the hash of key or token, and by the
    /// changes that there had been when it was asked for.
    known: future::Cache<(String, u64), Option<Known>>,
    /// Of callers, so far.
    changes: AtomicU64,
    /// Valid callers of late: they go on when the store cannot be asked.
    last: sync::Cache<String, Known>,
    failures: Failures,
    uses: Uses,
    wait: Duration,
    /// What the ledger knows of the store.
    away: Away,
    measured: IdentityMetrics,
}

/// How users are told, and what those without an account get.
struct Users {
    tokens: Tokens,
    /// By the plan as it was at the start.
    signup: SignupTerms,
    /// Has the plan as it is now.
    catalog: Arc<Catalog>,
}

#[derive(Clone)]
struct Known {
    principal: Principal,
    /// When a token ends.
    until: Option<Timestamp>,
}

/// Keys and tokens remembered, unknown ones included.
const KNOWN_MAX: u64 = 100_000;
/// A revoked key works no longer than this, should the news of it not arrive.
const KNOWN_FOR: Duration = Duration::from_secs(10);
/// Who hears of changes while asking asks again, so often at most: of one change here there is news
/// up to three times, and most concern others.
const ASKED_MAX: usize = 4;

impl Auth {
    /// # Errors
    /// [`Error::Internal`] when tokens are configured in a way that cannot work.
    pub fn new(
        store: Arc<dyn Store>,
        config: &IdentityConfig,
        signup: SignupTerms,
        catalog: Arc<Catalog>,
        wait: Duration,
        away: Away,
        measured: IdentityMetrics,
    ) -> Result<Self, Error> {
        let tokens = config.tokens.clone().map(Tokens::new).transpose()?;
        Ok(Self {
            store,
            users: tokens.map(|tokens| Users { tokens, signup, catalog }),
            known: future::Cache::builder().max_capacity(KNOWN_MAX).time_to_live(KNOWN_FOR).build(),
            last: sync::Cache::builder()
                .max_capacity(KNOWN_MAX)
                .time_to_live(config.stale)
                .support_invalidation_closures()
                .build(),
            failures: Failures::new(config.failures_per_minute),
            uses: Uses::default(),
            changes: AtomicU64::new(0),
            wait,
            away,
            measured,
        })
    }

    /// Keeps the auth server's keys fresh until `stop`.
    pub async fn run(&self, stop: CancellationToken) {
        let jwks = self.users.as_ref().and_then(|users| users.tokens.jwks.as_ref());
        if let Some(jwks) = jwks {
            jwks.run(stop).await;
        }
    }

    /// The principal of a bearer token that came from an address.
    ///
    /// # Errors
    /// Why it has none, or why that cannot be told.
    pub async fn principal(&self, token: &str, from: IpAddr) -> Result<Principal, Error> {
        let found = self.find(token, from).await;
        if matches!(found, Err(Error::WrongKey | Error::WrongToken(_))) {
            self.failures.count(from);
        }
        if let Ok(Some(key)) = found.as_ref().map(Principal::key_id) {
            self.uses.note(key, Timestamp::now());
        }
        found
    }

    async fn find(&self, token: &str, from: IpAddr) -> Result<Principal, Error> {
        let key = (sha256_hex(token.as_bytes()), self.changes());
        if let Some(known) = self.known.get(&key).await.flatten() {
            self.measured.remembered.inc();
            return known.principal();
        }
        let (hash, _) = key;
        // A caller who was valid recently is not guessing: others may share the address.
        if !self.last.contains_key(&hash) {
            self.failures.check(from)?;
        }
        let credential = self.credential(token).ok_or(Error::WrongKey)?;
        self.measured.asked.inc();
        // In a box, because it is rare and ten times as large as the rest of what a request is made
        // of.
        match Box::pin(self.ask(hash, &credential)).await? {
            Some(known) => known.principal(),
            None => Err(credential.unknown()),
        }
    }

    /// One look-up at a time for a key; a failed one is not remembered, nor does one count that a
    /// change may have overtaken.
    async fn ask(
        &self,
        mut hash: String,
        credential: &Credential<'_>,
    ) -> Result<Option<Known>, Error> {
        let mut asked = 0;
        loop {
            let key = (hash, self.changes());
            let look_up = self.look_up(&key.0, key.1, credential);
            let found = self.known.try_get_with_by_ref(&key, look_up).await;
            let found = found.map_err(Arc::unwrap_or_clone)?;
            asked += 1;
            if key.1 == self.changes() || asked == ASKED_MAX {
                return Ok(found);
            }
            (hash, _) = key;
        }
    }

    fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }

    /// What the text is by its form, where it can be anything.
    fn credential<'a>(&'a self, token: &'a str) -> Option<Credential<'a>> {
        if is_well_formed(token) {
            return Some(Credential::Key);
        }
        let users = self.users.as_ref().filter(|_| Tokens::has_form(token))?;
        Some(Credential::Token(token, users))
    }

    /// Asks; when the store cannot answer, who was there a while ago still is.
    async fn look_up(
        &self,
        hash: &String,
        as_of: u64,
        credential: &Credential<'_>,
    ) -> Result<Option<Known>, Error> {
        let wait = self.wait_for(hash);
        let asked = match credential {
            Credential::Key => within(wait, self.of_key(hash)).await,
            Credential::Token(token, users) => self.of_token(token, users, wait).await,
        };
        match asked {
            Ok(Some(known)) => {
                self.last.insert(hash.clone(), known.clone());
                // The key may have been ended since the store was asked.
                if as_of != self.changes() {
                    self.last.invalidate(hash);
                }
                Ok(Some(known))
            }
            Err(Error::Database(reason)) => match self.last.get(hash) {
                Some(known) => {
                    tracing::warn!("a known caller goes on without the database: {reason}");
                    Ok(Some(known))
                }
                None => Err(Error::Database(reason)),
            },
            Err(Error::AuthServer) => Err(Error::AuthServer),
            told => {
                self.last.invalidate(hash);
                told
            }
        }
    }

    async fn of_key(&self, hash: &str) -> Result<Option<Known>, Error> {
        let asked_at = Instant::now();
        let found = self.store.key_by_hash(hash).await?;
        Ok(found.map(|(key, account, budget): (ApiKey, Account, KeyBudget)| {
            let principal = Principal {
                has_key_limits: budget.has_limits(),
                funds: funds(&account, Some(budget), asked_at),
                account_id: account.id,
                plan: account.plan,
                rates: account.rates,
                role: key.role,
                caller: Caller::Key(Arc::new(key.by_secret(hash))),
            };
            Known { principal, until: None }
        }))
    }

    /// Proven first, so that nothing is asked of the store, or made in it, for anybody else.
    async fn of_token(
        &self,
        token: &str,
        users: &Users,
        wait: Duration,
    ) -> Result<Option<Known>, Error> {
        let user = users.tokens.verify(token).await?;
        let signup = users.signup();
        let asked_at = Instant::now();
        let account = within(wait, self.account_of(user.id, &signup)).await?;
        Ok(account.map(|account| {
            let principal = Principal {
                has_key_limits: false,
                funds: funds(&account, None, asked_at),
                account_id: account.id,
                plan: account.plan,
                rates: account.rates,
                role: user.role,
                caller: Caller::User(user.id),
            };
            Known { principal, until: Some(user.until) }
        }))
    }

    async fn account_of(
        &self,
        user: UserId,
        signup: &SignupTerms,
    ) -> Result<Option<Account>, Error> {
        match self.store.member(user).await? {
            Some((_, account)) => Ok(Some(account)),
            None => sign_up(self.store.as_ref(), user, signup).await,
        }
    }

    /// How long the store is waited for: not for long where somebody who is known can go on without
    /// it, and not at all once it is known to be away.
    fn wait_for(&self, hash: &String) -> Duration {
        match self.away.patience().filter(|_| self.last.contains_key(hash)) {
            Some(_) if self.away.is_away() => Duration::ZERO,
            Some(patience) => self.wait.min(patience),
            None => self.wait,
        }
    }

    /// Writes down when keys were last used.
    ///
    /// # Errors
    /// The store's.
    pub async fn write_uses(&self) -> Result<(), StoreError> {
        self.uses.write(self.store.as_ref()).await
    }

    /// Asks again for everybody: another process has changed some.
    pub fn forget(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
        // What is not found any more makes room.
        self.known.invalidate_all();
    }

    /// Nobody goes on by what this key was, not even in an outage that begins now: by none of its
    /// secrets, also those that it has no longer.
    pub fn forget_key(&self, id: ApiKeyId) {
        self.forget_callers(move |caller| matches!(caller, Caller::Key(key) if key.id == id));
    }

    /// As [`Auth::forget_key`], of a user's tokens.
    pub fn forget_user(&self, id: UserId) {
        self.forget_callers(move |caller| matches!(caller, Caller::User(user) if *user == id));
    }

    fn forget_callers(&self, is_meant: impl Fn(&Caller) -> bool + Send + Sync + 'static) {
        // First: who is being asked for now is asked for again, and not put back.
        self.changes.fetch_add(1, Ordering::AcqRel);
        let is_meant = move |_: &String, known: &Known| is_meant(&known.principal.caller);
        // It fails in a cache that was not made for it; then it is better to know nobody.
        if self.last.invalidate_entries_if(is_meant).is_err() {
            self.last.invalidate_all();
        }
    }
}

/// What there is to spend, of what was read since `asked_at`: a hold may have been committed
/// between the reading and now. A sum out of its range is nothing to go by.
fn funds(account: &Account, budget: Option<KeyBudget>, asked_at: Instant) -> Funds {
    let now = Timestamp::now();
    let is_active = account.status == AccountStatus::Active;
    let available = account.available(now).ok().filter(|_| is_active);
    let left = budget.filter(KeyBudget::has_limits).map(|mut budget| {
        budget.roll(now);
        budget.available().unwrap_or_default()
    });
    Funds { account: available.unwrap_or_default(), key: left, read_at: asked_at }
}

/// What a bearer token is.
enum Credential<'a> {
    Key,
    Token(&'a str, &'a Users),
}

impl Credential<'_> {
    fn unknown(&self) -> Error {
        match self {
            Self::Key => Error::WrongKey,
            Self::Token(..) => Error::NoAccount,
        }
    }
}

impl Users {
    /// What a first login gets now. A plan that has left the table stays as it was at the start.
    fn signup(&self) -> SignupTerms {
        let plan = self.signup.plan.as_deref().and_then(|name| self.catalog.plan(name));
        let terms = self.signup.clone();
        match plan {
            Some(plan) => terms.by(&plan),
            None => terms,
        }
    }
}

impl Known {
    /// Unless its time is over.
    fn principal(self) -> Result<Principal, Error> {
        let now = Timestamp::now();
        if self.until.is_some_and(|until| now > until) {
            return Err(Error::ExpiredToken);
        }
        if self.principal.is_usable(now) { Ok(self.principal) } else { Err(Error::WrongKey) }
    }
}

impl Principal {
    #[must_use]
    pub fn key_id(&self) -> Option<ApiKeyId> {
        match &self.caller {
            Caller::Key(key) => Some(key.id),
            Caller::User(_) => None,
        }
    }

    #[must_use]
    pub fn user_id(&self) -> Option<UserId> {
        match &self.caller {
            Caller::Key(_) => None,
            Caller::User(user) => Some(*user),
        }
    }

    /// Whether the caller may ask for this model.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        match &self.caller {
            Caller::Key(key) => key.allows(model),
            Caller::User(_) => true,
        }
    }

    /// How fast the caller may go: the account's own limits and the key's, else the plan's.
    #[must_use]
    pub fn limits(&self, plan: LimitsInForce) -> LimitsInForce {
        let key = match &self.caller {
            Caller::Key(key) => key.rates.or(plan.key),
            Caller::User(_) => RateLimits::default(),
        };
        LimitsInForce { account: self.rates.or(plan.account), key }
    }

    /// Decides over the account: its keys, how it pays. A key of an application may spend money;
    /// it need not see invoices and cards, nor make other keys.
    #[must_use]
    pub fn is_owner(&self) -> bool {
        match (&self.caller, self.role) {
            (Caller::User(_), _) | (Caller::Key(_), Role::Admin | Role::Service) => true,
            (Caller::Key(_), Role::User) => false,
        }
    }

    /// Runs this service.
    #[must_use]
    pub fn is_operator(&self) -> bool {
        match self.role {
            Role::Admin | Role::Service => true,
            Role::User => false,
        }
    }

    /// As the audit log names it.
    #[must_use]
    pub fn actor(&self) -> String {
        match &self.caller {
            Caller::Key(key) => format!("key:{}", key.id),
            Caller::User(user) => format!("user:{user}"),
        }
    }

    fn is_usable(&self, now: Timestamp) -> bool {
        match &self.caller {
            Caller::Key(key) => key.is_usable(now),
            Caller::User(_) => true,
        }
    }
}
