//! What goes wrong: each fault for a while, and put right after it.

use std::time::Duration;

use super::load::Load;
use super::replicas::Replica;
use crate::app::clock::Clock;
use crate::app::cluster::Cluster;
use crate::app::in_its_time;
use crate::app::proxy::Proxy;
use crate::app::store::server_of;
use crate::random::Random;
use crate::sinks::openmeter::OpenMeter;
use crate::sinks::server::Fault;
use crate::sinks::webhook::Webhook;
use crate::upstream::model::{Manner, Model};

pub const ALL: [&str; 11] = [
    "database paused",
    "database slow",
    "database read-only",
    "database restarted",
    "database failed over",
    "database's disk full",
    "sinks down",
    "upstream flapping",
    "clock jumps",
    "replica killed",
    "rolling restart",
];

/// All that can be broken.
pub struct World {
    pub primary: Cluster,
    pub standby: Cluster,
    pub proxy: Proxy,
    pub replicas: Vec<Replica>,
    pub model: Model,
    pub openmeter: OpenMeter,
    pub webhook: Webhook,
    /// Of one of the replicas.
    pub clock: Clock,
}

impl World {
    /// Breaks one thing for so long, and puts it right.
    pub async fn suffer(&mut self, fault: &str, span: Duration, random: &Random) {
        match fault {
            "database paused" => {
                self.primary.pause();
                self.pass(span).await;
                self.primary.resume();
            }
            "database slow" => {
                let delay = 30 + random.below(200);
                self.proxy.slow(Duration::from_millis(u64::try_from(delay).expect("short")));
                self.pass(span).await;
                self.proxy.slow(Duration::ZERO);
            }
            "database read-only" => {
                self.primary.set("default_transaction_read_only", "on").await;
                self.pass(span).await;
                self.primary.set("default_transaction_read_only", "off").await;
            }
            "database restarted" => {
                self.primary.kill9().await;
                self.pass(span).await;
                self.primary.start_again().await;
            }
            "database failed over" => self.fail_over(span).await,
            "database's disk full" => self.fill_disk(span).await,
            "sinks down" => {
                self.openmeter.faults.always(Some(Fault::CutBefore));
                self.webhook.faults.always(Some(Fault::FailAfter(503)));
                self.pass(span).await;
                self.openmeter.faults.calm();
                self.webhook.faults.calm();
            }
            "upstream flapping" => {
                for _ in 0..4 {
                    self.model.behave(Manner { fails_one_in: 3, ..super::manner() });
                    self.pass(span / 8).await;
                    self.model.behave(super::manner());
                    self.pass(span / 8).await;
                }
            }
            "clock jumps" => self.jump(span, random).await,
            "replica killed" => {
                let replica = &self.replicas[random.below(self.replicas.len())];
                replica.kill9().await;
                self.pass(span).await;
                replica.start_again();
                self.all_ready().await;
            }
            "rolling restart" => {
                for replica in &self.replicas {
                    replica.stop().await;
                    replica.start_again();
                    self.all_ready().await;
                }
            }
            other => panic!("no such fault: {other}"),
        }
    }

    /// The standby has every commit; the old primary is dead before it takes over.
    async fn fail_over(&mut self, span: Duration) {
        self.primary.kill9().await;
        self.pass(span).await;
        self.standby.promote().await;
        self.proxy.lead_to(server_of(&self.standby.url()));
        let next = Cluster::standby_of(&self.standby).await;
        self.primary = std::mem::replace(&mut self.standby, next);
    }

    /// No file of it can grow: it gives up, and an operator starts it again when there is room.
    async fn fill_disk(&mut self, span: Duration) {
        self.primary.limit_files(Some(1 << 20));
        self.pass(span).await;
        self.primary.limit_files(None);
        self.pass(Duration::from_millis(500)).await;
        if self.primary.is_over() {
            self.primary.kill9().await;
            self.primary.start_again().await;
        } else {
            // Backends that were started meanwhile have the limit of their parent, of then.
            self.primary.limit_files(None);
        }
    }

    /// Forward, back and to and fro: in a long run by minutes, the most that a webhook's receiver
    /// stands for. What was put off by such a clock waits as long afterwards.
    async fn jump(&self, span: Duration, random: &Random) {
        let most = usize::try_from(2 * span.as_secs()).expect("few").clamp(10, 240);
        for _ in 0..4 {
            let off = i64::try_from(random.below(2 * most)).expect("few");
            let off = off - i64::try_from(most).expect("few");
            self.clock.set(off);
            self.pass(span / 4).await;
        }
        self.clock.set(0);
    }

    /// Time goes by, in which a supervisor does its work.
    pub async fn pass(&self, span: Duration) {
        let until = tokio::time::Instant::now() + span;
        while tokio::time::Instant::now() < until {
            for replica in &self.replicas {
                replica.supervise().await;
            }
            tokio::time::sleep(Duration::from_millis(100).min(span)).await;
        }
    }

    pub async fn all_ready(&self) {
        for replica in &self.replicas {
            replica.supervise().await;
            assert!(
                replica.ready().await,
                "a replica does not come back: {}",
                replica.stderr().await
            );
        }
    }

    /// The load goes on: the next fault meets processes at work.
    pub async fn goes_on(&self, load: &Load, span: Duration) {
        let before = load.served();
        self.pass(span).await;
        self.all_ready().await;
        in_its_time("somebody is served again", async || (load.served() > before).then_some(()))
            .await;
    }
}
