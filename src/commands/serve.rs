//! `tollgate serve`: builds what a request needs, serves, and leaves in order.
//!
//! The order of leaving: readiness off, a moment for load balancers, the listener closed, streams
//! to their end or the deadline, the rest settled as it stands, the ledger written out.

mod background;
mod metrics;
mod reload;
mod welcome;

use crate::config::{
    Config, DatabaseConfig, DatabaseKind, SignupConfig, UpstreamConfig, UpstreamKind,
};
use crate::models::account::AccountKind;
use crate::models::ids::InstanceId;
use crate::models::timestamp::Timestamp;
use crate::routes;
use crate::server::{self, Bounds, Signals};
use crate::services::admission::{Admission, HoldTerms};
use crate::services::auth::Auth;
use crate::services::billing;
use crate::services::billing::payments::Payments;
use crate::services::bodies::Bodies;
use crate::services::catalog::{Catalog, OperatorTable};
use crate::services::directory::SignupTerms;
use crate::services::exchange::DOCUMENT_BYTES_MAX;
use crate::services::housekeeping;
use crate::services::late::LateTruths;
use crate::services::ledger::{self, Journal, Ledger, Leftovers, OutageTerms, Writer};
use crate::services::metrics::Metrics;
use crate::services::pulse::Pulse;
use crate::services::recovery::Recovery;
use crate::services::reports::Reports;
use crate::services::settle::{DRAINS_MAX, Settler};
use crate::services::tokens::Vocabularies;
use crate::services::trace::Tracer;
use crate::services::upstreams::Upstreams;
use crate::services::watch::Watch;
use crate::state::{App, RepeatedNews};
use crate::store::sqlite::SqliteStore;
use crate::store::{IfMissing, Store, StoreError, in_time, within};
use crate::{demo, log};
use anyhow::{Context, bail};
use background::Background;
use secrecy::ExposeSecret;
use std::fs::File;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long the start waits for a look at a database that it does not migrate.
const CHECK_WAIT: Duration = Duration::from_secs(2);
/// Before the next look at one that was away.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long the start waits for the first model list before it serves without one.
const FIRST_LIST_WAIT: Duration = Duration::from_secs(10);
/// For error events to reach their clients after the deadline.
const LAST_BYTES_WAIT: Duration = Duration::from_secs(2);
/// For the ledger to write out what was settled.
const LEDGER_WAIT: Duration = Duration::from_secs(30);
/// How often it is written down when keys were last used.
const USES_EVERY: Duration = Duration::from_secs(30);
/// … and how long the end waits for the last of it: less than a minute is lost.
const LAST_USES_WAIT: Duration = Duration::from_secs(2);
/// For calls to billing sinks that are under way.
const EXPORT_WAIT: Duration = Duration::from_secs(5);
/// After a listener for changes has failed.
const CHANGES_PAUSE: Duration = Duration::from_secs(1);

/// Runs until SIGTERM or SIGINT.
pub async fn run(mut config: Config) -> anyhow::Result<ExitCode> {
    log::start(&config.log)?;
    // Before anybody can be told that we are here: a signal from now on is an orderly end, or is
    // remembered until there is something to reload.
    let leave_signals = LeaveSignals::new()?;
    let hangups = signal(SignalKind::hangup())?;
    config.check_demo()?;
    let lock = lock(&config)?;
    let store = super::open_store(&config, IfMissing::Make).await?;
    if config.database.migrate {
        store.migrate().await.context("applying migrations")?;
    } else {
        check(store.as_ref()).await?;
    }
    start_demo(&mut config).await?;
    let (app, writer) = build(config, store).await?;
    let writer = tokio::spawn(writer.run());
    // Only SQLite does it: the lock proves that there are no others.
    app.store.expire_leases_of_others(app.admission.instance).await?;
    let mut background = Background::new();
    start_background(&app, &mut background);
    let (reloaded, mut hangups) = (app.clone(), hangups);
    background.run_until_stop(async move { reload::follow(&reloaded, &mut hangups).await });
    let exports = start_exports(&app, &mut background).await?;
    serve(app, background, writer, leave_signals).await?;
    // A call under way is finished, or its lease ends.
    if tokio::time::timeout(EXPORT_WAIT, exports.wait()).await.is_err() {
        tracing::warn!("a billing sink did not answer in time: its events are sent later");
    }
    drop(lock);
    Ok(ExitCode::SUCCESS)
}

/// A database that is away does not keep the server from its start: `unfit` looks again.
async fn check(store: &dyn Store) -> anyhow::Result<()> {
    match within(CHECK_WAIT, store.check()).await {
        Err(error) if !error.is_transient() => Err(error.into()),
        _ => Ok(()),
    }
}

/// Ends when the store turns out to be one that the books cannot be kept in.
async fn unfit(store: &dyn Store) -> StoreError {
    loop {
        match store.check().await {
            Ok(()) => return std::future::pending().await,
            Err(error) if error.is_transient() => tokio::time::sleep(CHECK_PAUSE).await,
            Err(error) => return error,
        }
    }
}

/// One server a SQLite file: the lock proves that the owner of an old hold is dead.
fn lock(config: &Config) -> anyhow::Result<Option<File>> {
    if config.database.kind != DatabaseKind::Sqlite {
        return Ok(None);
    }
    let path = SqliteStore::file(config.database.url.expose_secret())?;
    let mut beside = path.clone().into_os_string();
    beside.push(".lock");
    let file = File::create(beside).context("making the lock file")?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(_) => bail!("another Tollgate serves {}", path.display()),
    }
}

/// Without an upstream there is the demo.
async fn start_demo(config: &mut Config) -> anyhow::Result<()> {
    let upstreams = &mut config.upstreams;
    if !upstreams.list.is_empty() {
        return Ok(());
    }
    tracing::warn!(
        "no upstream is configured: a built-in DEMO answers as model '{}'; \
         set OPENROUTER_API_KEY or UPSTREAM_BASE_URL for a real one",
        demo::MODEL
    );
    let base = demo::start().await?;
    upstreams.list.push(UpstreamConfig::only(UpstreamKind::OpenAi, base, upstreams.defaults));
    Ok(())
}

async fn build(config: Config, store: Arc<dyn Store>) -> anyhow::Result<(Arc<App>, Writer)> {
    let metrics = Arc::new(Metrics::new());
    let upstreams = Arc::new(Upstreams::new(&config.upstreams, &metrics.upstreams)?);
    let vocabularies = tokio::task::spawn_blocking(Vocabularies::load).await??;
    let instance = InstanceId::generate();
    let outage = outage_terms(&config.database, instance)?;
    let (ledger, writer) = ledger::new(store.clone(), metrics.clone(), outage);
    let away = ledger.away().clone();
    let money = config.money.clone();
    let catalog = Catalog::new(upstreams.clone(), store.clone(), vocabularies.clone(), money)?;
    let catalog = Arc::new(catalog);
    let stop = CancellationToken::new();
    let settler = settler(&config, upstreams, ledger.clone(), stop.clone());
    let admission = Admission {
        catalog: catalog.clone(),
        ledger,
        settler: Arc::new(settler),
        vocabularies,
        instance,
        answers: Arc::new(Bodies::new(DOCUMENT_BYTES_MAX)),
        terms: HoldTerms::of(&config),
    };
    let signup = first_signup_terms(&config, store.as_ref()).await?;
    let (wait, identity) = (config.database.wait, metrics.identity.clone());
    let plans = catalog.clone();
    let auth = Auth::new(store.clone(), &config.identity, signup, plans, wait, away, identity)?;
    let leaving = CancellationToken::new();
    let reports = Reports::new(store.clone());
    let payments = Arc::new(Payments::new(&config, store.clone(), catalog.clone())?);
    let tracer = Tracer::new(&config.trace)?;
    let bodies = Arc::new(Bodies::new(config.server.body_bytes_max));
    let app = App {
        config,
        store,
        auth,
        bodies,
        pulse: Pulse::default(),
        catalog,
        admission,
        reports,
        metrics,
        payments,
        tracer,
        repeated_news: RepeatedNews::default(),
        leaving,
        stop,
    };
    Ok((Arc::new(app), writer))
}

/// What the ledger needs to go on without its database: first of all a journal that it can write.
fn outage_terms(
    database: &DatabaseConfig,
    instance: InstanceId,
) -> anyhow::Result<Option<OutageTerms>> {
    let Some(outage) = &database.outage else { return Ok(None) };
    let journal = Journal::create(&outage.folder, instance)
        .with_context(|| format!("making a journal in {}", outage.folder.display()))?;
    // Before the request gives up, so that it is still there to be served.
    let patience = database.wait / 4;
    Ok(Some(OutageTerms { exposure: outage.exposure, lease: database.lease, patience, journal }))
}

/// Those at the start. Without a plan the database is not asked: it may be away.
async fn first_signup_terms(config: &Config, store: &dyn Store) -> anyhow::Result<SignupTerms> {
    let signup = &config.identity.signup;
    let table = match signup.plan {
        Some(_) => OperatorTable::in_force(store, config.money.prices.as_deref()).await?,
        None => OperatorTable::default(),
    };
    signup_terms(signup, &table)
}

/// What a first login gets, by the plan that is named for it.
fn signup_terms(config: &SignupConfig, table: &OperatorTable) -> anyhow::Result<SignupTerms> {
    let SignupConfig { is_open, plan, credit } = config;
    let terms = SignupTerms {
        is_open: *is_open,
        kind: AccountKind::Prepaid,
        plan: plan.clone(),
        limit_nusd: None,
        credit: *credit,
    };
    let Some(name) = plan else { return Ok(terms) };
    let unknown = || format!("TOLLGATE_SIGNUP_PLAN: there is no plan '{name}'");
    Ok(terms.by(table.plan(name).with_context(unknown)?))
}

fn settler(
    config: &Config,
    upstreams: Arc<Upstreams>,
    ledger: Ledger,
    stop: CancellationToken,
) -> Settler {
    Settler {
        upstreams,
        ledger,
        slow_lookup: config.upstreams.slow_lookup,
        slow_lookup_every: config.upstreams.slow_lookup_every,
        note_wait: config.database.wait,
        drains: Arc::new(Semaphore::new(DRAINS_MAX)),
        tasks: TaskTracker::new(),
        runtime: tokio::runtime::Handle::current(),
        stop,
        slow: config.log.slow,
    }
}

/// What goes on beside requests.
fn start_background(app: &Arc<App>, background: &mut Background) {
    let (store, settler) = (app.store.clone(), app.admission.settler.clone());
    let (instance, database) = (app.admission.instance, &app.config.database);

    let catalog = app.catalog.clone();
    background.run(|stop| async move { catalog.run(stop).await });
    let users = app.clone();
    background.run(|stop| async move { users.auth.run(stop).await });
    let recovery = Recovery {
        store: store.clone(),
        settler: settler.clone(),
        instance,
        lease: database.lease,
        is_alone: database.kind == DatabaseKind::Sqlite,
    };
    background.run(|stop| async move { recovery.run(stop).await });
    if let Some(outage) = &database.outage {
        let measured = app.admission.ledger.measured();
        let leftovers = Leftovers::new(store.clone(), measured, &outage.folder, database.lease);
        background.run(|stop| async move { leftovers.run(stop).await });
    }
    let late = LateTruths { store: store.clone(), settler };
    background.run(|stop| async move { late.run(stop).await });
    let swept = store.clone();
    background.run_until_stop(async move { housekeeping::run(swept.as_ref()).await });
    let watch = Watch {
        store,
        ledger: app.admission.ledger.clone(),
        metrics: app.metrics.clone(),
        instance,
        sinks: app.config.billing.sinks(),
    };
    background.run(|stop| async move { watch.run(stop).await });
    let changed = app.clone();
    background.run_until_stop(async move { follow_changes(&changed).await });
    let used = app.clone();
    background.run(|stop| async move { write_uses(&used, &stop).await });
}

/// Writes down when keys were last used, now and then.
async fn write_uses(app: &App, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(USES_EVERY) => {}
            () = stop.cancelled() => return,
        }
        if let Err(error) = in_time(app.auth.write_uses()).await {
            tracing::debug!("when keys were last used is not written down yet: {error}");
        }
    }
}

/// A database that is away does not keep the server from its start.
async fn register_sinks_later(store: &dyn Store, stop: &CancellationToken) {
    while in_time(store.register_sinks(Timestamp::now())).await.is_err() {
        tokio::select! {
            () = tokio::time::sleep(CHANGES_PAUSE) => {}
            () = stop.cancelled() => return,
        }
    }
}

/// The workers of the billing sinks.
async fn start_exports(app: &App, background: &mut Background) -> anyhow::Result<TaskTracker> {
    let (tasks, stop) = (TaskTracker::new(), background.stop.clone());
    match app.store.register_sinks(Timestamp::now()).await {
        Err(error) if error.is_transient() => {
            let (store, stop) = (app.store.clone(), stop.clone());
            let registering = async move { register_sinks_later(store.as_ref(), &stop).await };
            background.watch(tasks.spawn(registering));
        }
        registered => registered?,
    }
    let api = app.payments.api();
    let sinks = &app.metrics.sinks;
    let workers = billing::start(&app.config.billing, &app.store, sinks, api, &tasks, &stop)?;
    for worker in workers {
        background.watch(worker);
    }
    let customers = app.payments.clone();
    background.watch(tasks.spawn(async move { customers.run_customers(stop).await }));
    tasks.close();
    Ok(tasks)
}

/// Drops what is remembered when another process has changed accounts or keys.
async fn follow_changes(app: &App) {
    let forget = || app.forget();
    loop {
        if let Err(error) = app.store.follow_changes(&forget).await {
            tracing::debug!("waiting for changes: {error}");
        }
        tokio::time::sleep(CHANGES_PAUSE).await;
    }
}

async fn serve(
    app: Arc<App>,
    mut background: Background,
    mut writer: tokio::task::JoinHandle<()>,
    leave_signals: LeaveSignals,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(app.config.server.listen)
        .await
        .with_context(|| format!("listening on {}", app.config.server.listen))?;
    let measuring = metrics::start(&app, &background.stop).await?;
    if tokio::time::timeout(FIRST_LIST_WAIT, app.catalog.filled()).await.is_err() {
        tracing::warn!("serving without a model list: the upstream has not given one yet");
    }
    if let Err(error) = welcome::print(&app, listener.local_addr()?).await {
        // Nobody reads our standard output, or no first account could be made: we serve.
        tracing::warn!("the welcome: {error:#}");
    }

    let signals = Signals::default();
    let connections = TaskTracker::new();
    let router = routes::router(app.clone());
    let bounds = Bounds::of(&app.config.server);
    let serving = server::serve(listener, router, signals.clone(), connections.clone(), bounds);
    let serving = tokio::spawn(serving);
    let failed = tokio::select! {
        () = leave_signals.wait() => None,
        // Without it nothing can be charged: better no server than one that serves for nothing.
        _ = &mut writer => bail!("the ledger writer has ended"),
        error = unfit(app.store.as_ref()) => return Err(error.into()),
        error = background.panicked() => Some(error),
    };
    leave(&app, signals, connections).await;
    background.stop.cancel();
    serving.await?;
    measuring.wait().await;
    if tokio::time::timeout(LAST_USES_WAIT, app.auth.write_uses()).await.is_err() {
        tracing::debug!("when keys were last used could not be written down");
    }
    if let Some(tracer) = &app.tracer {
        tracer.flush().await;
    }
    drop(app);
    // The last ways into the ledger are gone: the writer ends when all is written.
    match tokio::time::timeout(LEDGER_WAIT, writer).await {
        Ok(ended) => ended.context("the ledger writer")?,
        Err(_) => bail!("the ledger could not be written out in time; recovery will settle it"),
    }
    failed.map_or(Ok(()), Err)
}

/// SIGTERM and SIGINT, caught from when this is made.
struct LeaveSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl LeaveSignals {
    fn new() -> anyhow::Result<Self> {
        let terminate = signal(SignalKind::terminate())?;
        let interrupt = signal(SignalKind::interrupt())?;
        Ok(Self { terminate, interrupt })
    }

    async fn wait(mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

async fn leave(app: &App, signals: Signals, connections: TaskTracker) {
    let server = &app.config.server;
    tracing::info!("leaving: readiness is off");
    app.leaving.cancel();
    tokio::time::sleep(server.shutdown_delay).await;
    signals.drain.cancel();
    connections.close();
    let tasks = app.admission.settler.tasks.clone();
    tasks.close();
    let finish = async {
        connections.wait().await;
        tasks.wait().await;
    };
    if tokio::time::timeout(server.drain, finish).await.is_err() {
        tracing::warn!("the deadline for streams has passed: settling them as they stand");
    }
    app.stop.cancel();
    let _ = tokio::time::timeout(LAST_BYTES_WAIT, connections.wait()).await;
    signals.abort.cancel();
    connections.wait().await;
    tasks.wait().await;
}
