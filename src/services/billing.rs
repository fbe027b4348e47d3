//! Billing events leave for their sinks: Stripe, OpenMeter, a webhook.
//!
//! Invariants: no transaction is open while a sink is called; what a sink has is never sent as
//! something new, because identifiers follow from the events; settling never waits for any of
//! this. `worker` takes, sends and acknowledges; `queue` is what the store does for that; the rest
//! are the sinks.

mod exporter;
pub mod openmeter;
mod pace;
pub mod payments;
mod queue;
pub mod stripe;
mod webhook;
mod worker;

use crate::config::{BillingConfig, STRIPE};
use crate::error::Error;
use crate::services::metrics::SinkMetrics;
use crate::store::Store;
use exporter::Exporter;
use openmeter::OpenMeter;
use queue::{EventQueue, ExportQueue, Queue};
use std::sync::Arc;
use std::time::Duration;
use stripe::Stripe;
use stripe::api::StripeApi;
use stripe::stream::{self, StripeStream};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use webhook::Webhook;
use worker::{Terms, Worker};

/// How long connecting to a sink may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);

/// Starts a worker for each sink that is set; each ends soon after `stop`.
///
/// # Errors
/// [`Error::Internal`] when a key or an address cannot be used in a request.
pub fn start(
    config: &BillingConfig,
    store: &Arc<dyn Store>,
    metrics: &SinkMetrics,
    api: Option<&Arc<StripeApi>>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Vec<JoinHandle<()>>, Error> {
    let mut workers = Vec::new();
    let terms =
        |sink| Terms { wait: config.wait, lease: config.lease, measured: metrics.sender(sink) };
    if let Some((stripe, api)) = config.stripe.as_ref().filter(|stripe| stripe.is_sink).zip(api) {
        let meters = stripe.meters.clone();
        if let Some(stream) = &stripe.stream {
            let exporter =
                StripeStream::new(stripe, stream, store.clone(), api.clone(), config.wait);
            let queue = ExportQueue::new(store.clone(), meters, stream::EVENTS_PER_CALL);
            workers.push(run(queue, exporter, terms(STRIPE), tasks, stop));
        } else {
            let exporter = Stripe::new(stripe, store.clone(), api.clone());
            let queue = ExportQueue::new(store.clone(), meters, 1);
            workers.push(run(queue, exporter, terms(STRIPE), tasks, stop));
        }
    }
    if let Some(openmeter) = &config.openmeter {
        let exporter = OpenMeter::new(openmeter, config.wait)?;
        let queue = EventQueue::new(store.clone(), OpenMeter::SINK, openmeter::EVENTS_PER_CALL);
        workers.push(run(queue, exporter, terms(OpenMeter::SINK), tasks, stop));
    }
    if let Some(webhook) = &config.webhook {
        let exporter = Webhook::new(webhook, config.wait)?;
        let queue = EventQueue::new(store.clone(), Webhook::SINK, 1);
        workers.push(run(queue, exporter, terms(Webhook::SINK), tasks, stop));
    }
    Ok(workers)
}

fn run<Q, E>(
    queue: Q,
    exporter: E,
    terms: Terms,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> JoinHandle<()>
where
    Q: Queue + 'static,
    E: Exporter<Parcel = Q::Parcel> + 'static,
{
    let worker = Worker { queue, exporter, terms };
    let stop = stop.clone();
    tasks.spawn(async move { worker.run(stop).await })
}
